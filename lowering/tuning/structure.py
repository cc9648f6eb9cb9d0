"""Structures: into which kernels a chain of convolutions is cut, and which of them change nothing around it.

What lies between the kernels of a chain is read by nothing else, as the graph passes group such convolutions only. At its ends
lie tensors that other kernels read and write: a structure for which they would lie in another layout is another network, with
other calls and conversions around, and is not tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepwise.lowering.selection import Selector, spell_cut, structure_key
from sepwise.lowering.workload import ConvWorkload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sepwise.lowering.device import Device
    from sepwise.lowering.graph import TensorType
    from sepwise.lowering.importer import ImportedGraph
    from sepwise.lowering.program import Program
    from sepwise.lowering.selection import Pick, Records

__all__ = ["Chain", "differs_around", "find_chains", "list_alternatives"]


@dataclass(frozen=True, slots=True)
class Chain:
    """All chains of a network that compute the same.

    Attributes:
        name: The first kernel of the first of them.
        workload: What each computes, as the graph passes grouped it.
        structure: Stages of its kernels.
        calls: Which of the Program's calls compute them.
        count: How many there are.
        ends: The values that they read and write, each with its type and layout.
    """

    name: str
    workload: ConvWorkload
    structure: Pick
    calls: tuple[int, ...]
    count: int
    ends: tuple[tuple[str, TensorType], ...]


def find_chains(program: Program, imported: ImportedGraph) -> dict[str, Chain]:
    """Finds the chains of a network that was built.

    Args:
        program: The network.
        imported: What it was built from.

    Returns:
        Chains by the key of their structure.
    """
    places = {call.name: place for place, call in enumerate(program.calls)}
    stages = {each.name: len(each.workload.stages) for each in imported.graph.kernels if isinstance(each.workload, ConvWorkload)}
    found: dict[str, Chain] = {}
    for chain in imported.chains:
        key = structure_key(chain.workload)
        calls = tuple(places[name] for name in chain.kernels)
        first, last = program.calls[calls[0]], program.calls[calls[-1]]
        names = (first.inputs[0], *last.inputs[1:], *last.outputs)
        ends = tuple((name, program.find_value(name).type) for name in names)
        known = found.get(key)
        if known is None:
            structure = spell_cut([stages[name] for name in chain.kernels])
            found[key] = Chain(first.name, chain.workload, structure, calls, 1, ends)
        else:
            together = (*known.calls, *calls), known.count + 1, (*known.ends, *ends)
            found[key] = Chain(known.name, known.workload, known.structure, *together)
    return found


def list_alternatives(chains: Mapping[str, Chain], device: Device, threads: int) -> list[Records]:
    """Lists the structures beside those that chains have, so that each occurs once.

    Args:
        chains: As they are by default.
        device: The target.
        threads: Workers.

    Returns:
        As many sets of records as the chain with the most has alternatives; each has one of every chain that has so many.
    """
    selector = Selector(device, threads)
    others = {
        key: [pick for pick in map(spell_cut, selector.cuts(chain.workload)) if pick != chain.structure]
        for key, chain in chains.items()
    }
    most = max(map(len, others.values()), default=0)
    return [{key: picks[place] for key, picks in others.items() if place < len(picks)} for place in range(most)]


def differs_around(chain: Chain | None, default: Chain) -> str | None:
    """Says what lies otherwise around a chain of another structure, None where nothing does.

    Args:
        chain: The chain with that structure, None where it is not there.
        default: The same by default.
    """
    if chain is None:
        return "it is not there"
    for (name, own), (before, others) in zip(chain.ends, default.ends, strict=True):
        if (name, own) != (before, others):
            return f"tensor '{before}' would lie as {own.layout} instead of {others.layout}"
    return None
