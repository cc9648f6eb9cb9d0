"""Structures of chains: which there are, and which change nothing around."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest

from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.graph import Layout
from sepwise.lowering.importer import ImportedGraph
from sepwise.lowering.program import Program
from sepwise.lowering.selection import Records, spell_cut
from sepwise.lowering.tuning.structure import Chain, differs_around, find_chains, list_alternatives

A72 = device.get("cortex-a72")
TEXT = """<ir_version: 10, opset_import: ["" : 18]>
blocks (float[1,24,8,8] x) => (float[1,24,8,8] y)
<float[48,24,1,1] w0, float[48,1,3,3] d0, float[24,48,1,1] p0, float[48,24,1,1] w1, float[48,1,3,3] d1, float[24,48,1,1] p1>
{
  [expand0] a0 = Conv (x, w0)
  [relu0] b0 = Relu (a0)
  [dw0] c0 = Conv <group = 48, pads = [1,1,1,1]> (b0, d0)
  [clip0] e0 = Relu (c0)
  [project0] f0 = Conv (e0, p0)
  [add0] z0 = Add (x, f0)
  [expand1] a1 = Conv (z0, w1)
  [relu1] b1 = Relu (a1)
  [dw1] c1 = Conv <group = 48, pads = [1,1,1,1]> (b1, d1)
  [clip1] e1 = Relu (c1)
  [project1] f1 = Conv (e1, p1)
  [add1] y = Add (z0, f1)
}
"""


@pytest.fixture(scope="module")
def build(network: Callable[[str], ir.Model]) -> Callable[..., tuple[Program, dict[str, Chain]]]:
    def built(records: Records | None = None) -> tuple[Program, dict[str, Chain]]:
        graphs: list[ImportedGraph] = []

        def emit(imported: ImportedGraph, *_: Any) -> bytes:
            graphs.append(imported)
            return b""

        program, _ = build_program(network(TEXT), A72, emit=emit, records=records)
        return program, find_chains(program, graphs[-1])

    return built


def test_equal_chains_are_one_and_know_what_is_around_them(build: Callable[..., tuple[Program, dict[str, Chain]]]) -> None:
    program, chains = build()
    ((key, chain),) = chains.items()
    assert key.startswith("chain/n1x8x8/24>48g1")
    assert chain.count == 2
    assert sum(stages for _, stages in chain.structure.sizes) == 3
    kernels = [program.calls[call] for call in chain.calls]
    assert len(kernels) == 2 * len(chain.structure.sizes)
    assert chain.name == kernels[0].name
    assert {node for kernel in kernels for node in kernel.nodes} >= {f"{name}{i}" for name in ("expand", "dw", "project") for i in "01"}
    first, second = chain.ends[:3], chain.ends[3:]
    assert [name.split(".")[0] for name, _ in first] == ["x", "x", "z0"]
    assert [name.split(".")[0] for name, _ in second] == ["z0", "z0", "y"]


def test_each_alternative_comes_once_and_is_what_is_built(build: Callable[..., tuple[Program, dict[str, Chain]]]) -> None:
    program, chains = build()
    ((key, chain),) = chains.items()
    alternatives = list_alternatives(chains, A72, 1)
    found = [chain.structure, *(each[key] for each in alternatives)]
    assert sorted(map(str, found)) == sorted(map(str, [spell_cut((3,)), spell_cut((1, 2)), spell_cut((1, 1, 1))]))
    for records in alternatives:
        other, others = build(records)
        assert others[key].structure == records[key]
        assert len(other.calls) != len(program.calls)
        whole = records[key] == spell_cut((3,))  # which reads packed tensors alone
        moved = f"tensor 'x' would lie as {Layout(4)} instead of {Layout()}"
        assert differs_around(others[key], chain) == (moved if whole else None)
    assert len({program.find_value(name).type.layout for name, _ in chain.ends}) <= 2


def test_a_chain_that_would_read_or_write_another_layout_is_left_out(build: Callable[..., tuple[Program, dict[str, Chain]]]) -> None:
    _, chains = build()
    (chain,) = chains.values()
    (name, held), *others = chain.ends
    packed = Layout() if held.layout.packed else Layout(4)
    moved = replace(chain, ends=((name, replace(held, layout=packed)), *others))
    assert differs_around(moved, chain) == f"tensor '{name}' would lie as {packed} instead of {held.layout}"
    assert differs_around(None, chain) == "it is not there"


def test_without_chains_there_is_nothing_to_choose() -> None:
    assert list_alternatives({}, A72, 1) == []
