"""A network that is tuned: its programs with each structure of its chains, and the kernels that can be tuned in them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from sepwise.lowering.build import build_objects, build_program
from sepwise.lowering.tuning.space import list_candidates
from sepwise.lowering.tuning.structure import differs_around, find_chains
from sepwise.lowering.tuning.trial import Tuned
from sepwise.lowering.verify import KernelChecker, before_grouping
from sepwise.lowering.workload import ConvWorkload, LinearWorkload
from sepwise.passes import fuse
from sepwise.passes.equivalence import extract, sample_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from sepwise.lowering.build import Lowered
    from sepwise.lowering.codegen import CompiledKernel
    from sepwise.lowering.device import Device
    from sepwise.lowering.importer import ImportedGraph
    from sepwise.lowering.program import Program
    from sepwise.lowering.selection import Pick, Records
    from sepwise.lowering.tuning.budget import Budget
    from sepwise.lowering.tuning.structure import Chain
    from sepwise.lowering.tuning.timing import Timer

__all__ = ["Network", "Variant", "add_variants", "build_network", "load_network"]


@dataclass(slots=True)
class Variant:
    """A network with one structure of each chain, and those kernels that are tuned in it.

    Attributes:
        structures: Records of chains whose structure is not the default's.
        program: The network.
        chains: By the key of their structure; of variants those whose structure may be chosen.
        whole: Whether the program has no other structures than these.
        kernels: Those that no variant before it has.
    """

    structures: dict[str, Pick]
    program: Program
    chains: dict[str, Chain]
    whole: bool = True
    kernels: list[Tuned] = field(default_factory=list)


@dataclass(slots=True)
class Network:
    """A network with what is tuned.

    Attributes:
        model: The network as it was loaded.
        graph: The same as kernels are checked against it.
        inputs: What it runs on.
        variants: First as it is by default, then with other structures of its chains.
        lowered: Kernels of all networks that were built.
        notes: What is worth saying.
    """

    model: ir.Model
    graph: ir.Model
    inputs: dict[str, np.ndarray]
    variants: list[Variant]
    lowered: Lowered = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def default(self) -> Variant:
        """The network with the default kernels."""
        return self.variants[0]

    @property
    def kernels(self) -> list[Tuned]:
        """All kernels that are tuned."""
        return [kernel for variant in self.variants for kernel in variant.kernels]

    def around(self, key: str) -> list[Tuned]:
        """The kernels of a chain, in whatever structure."""
        found = []
        for variant in self.variants:
            calls = set(variant.chains[key].calls) if key in variant.chains else set()
            found += [kernel for kernel in variant.kernels if calls.intersection(kernel.calls)]
        return found


def load_network(model: ir.Model, timer: Timer, *, float16: bool, budget: Budget) -> Network:
    """Builds a network as it is compiled without a database, and finds what is tuned in it.

    Args:
        model: The network as it was loaded.
        timer: What it is to run on.
        float16: Whether what is float32 is computed in float16, but for what needs more.
        budget: Is told of what building, loading and checking takes.

    Returns:
        The network with its default structures, and notes of what is left out.
    """
    lowered: Lowered = {}
    with budget.measure("build"):
        program, imported = build_network(model, timer, {}, lowered, budget, float16=float16)
    default = Variant({}, program, find_chains(program, imported))
    graph = before_grouping(fuse(model, float16=float16, keep_stages=True).stages)
    network = Network(model, graph, sample_inputs(model, 0), [default], lowered)
    _find_kernels(network, default, imported, timer, budget, calls=range(len(program.calls)))
    return network


def add_variants(
    network: Network, alternatives: Iterable[Records], timer: Timer, *, float16: bool, budget: Budget
) -> None:
    """Builds a network with other structures, and finds what is tuned in them.

    Args:
        network: As `load_network` gives it.
        alternatives: As `list_alternatives` gives them.
        timer: What it is to run on.
        float16: As `load_network` has it.
        budget: Is told of what building, loading and checking takes.
    """
    default = network.default
    for structures in alternatives:
        with budget.measure("build"):
            program, imported = build_network(network.model, timer, structures, network.lowered, budget, float16=float16)
        chains = find_chains(program, imported)
        variant = Variant({}, program, {})
        for key, structure in structures.items():
            reason = differs_around(chains.get(key), default.chains[key])
            if reason is None:
                variant.chains[key], variant.structures[key] = chains[key], structure
            else:
                variant.whole = False
                network.notes.append(f"Chain '{default.chains[key].name}' is not tried as '{structure}': {reason}.")
        if variant.chains:
            network.variants.append(variant)
            own = [call for chain in variant.chains.values() for call in chain.calls]
            _find_kernels(network, variant, imported, timer, budget, calls=own)


def build_network(
    model: ir.Model, timer: Timer, records: Records, lowered: Lowered, budget: Budget, *, float16: bool
) -> tuple[Program, ImportedGraph]:
    """Builds a network with records.

    Args:
        model: The network as it was loaded.
        timer: What it is to run on.
        records: What to compute workloads with, and how chains are cut.
        lowered: Kernels of the networks that were built before; those of this one are added.
        budget: Is told of what making an object takes, which is most of what another build does.
        float16: As `load_network` has it.

    Returns:
        The network, and what it was made of.
    """
    built: list[ImportedGraph] = []

    def emit(imported: ImportedGraph, compiled: Mapping[str, CompiledKernel], device: Device) -> bytes:
        built.append(imported)
        with budget.measure("object"):
            return build_objects(imported, compiled, device)

    program, _ = build_program(
        model, timer.device, threads=timer.threads, float16=float16, emit=emit, records=records, lowered=lowered
    )
    return program, built[-1]


def _find_kernels(
    network: Network, variant: Variant, imported: ImportedGraph, timer: Timer, budget: Budget, *, calls: Iterable[int]
) -> None:
    """Finds the kernels of some calls that can be tuned and that no variant before has."""
    program, known = variant.program, {kernel.workload.key for kernel in network.kernels}
    by_workload: dict[str, list[int]] = {}
    for index in calls:
        by_workload.setdefault(program.calls[index].workload, []).append(index)
    if by_workload.keys() <= known:
        return
    with budget.measure("load"):
        loaded = timer.load(program, network.inputs)
    with closing(loaded) as timed, budget.measure("check"):
        checker = KernelChecker(program, timed.runner, network.graph, network.inputs)
    own = {kernel.name: kernel.workload for kernel in imported.graph.kernels}
    for indices in by_workload.values():
        call = program.calls[indices[0]]
        workload = own[call.name]
        if not isinstance(workload, ConvWorkload | LinearWorkload) or workload.key in known:
            continue
        sources, targets = checker.cover(indices[0])
        if len(targets) != 1 or len(sources) != len(set(call.inputs)):
            network.notes.append(f"Kernel '{call.name}' keeps its default: it computes part of a node, which cannot be checked.")
            continue
        declared = list_candidates(workload, timer.device, timer.threads)
        default = next(each for each in declared if (each.strategy.name, str(each.tile)) == (call.strategy, call.tile))
        variant.kernels.append(
            Tuned(
                name=call.name,
                workload=workload,
                calls=tuple(indices),
                default=default.pick,
                weights=imported.weights[call.name],
                inputs=tuple(map(program.find_value, call.inputs)),
                output=program.find_value(call.outputs[0]),
                part=ir.from_proto(extract(checker.model, sources, targets)),
                feed={source: checker.tensors[source] for source in sources},
            )
        )
