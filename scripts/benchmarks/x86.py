"""How fast sepwise is on this x86 machine, untuned: beside other runtimes, beside the machine's peak, and beside itself.

    scripts/benchmarks/x86.sh                                        everything
    scripts/benchmarks/x86.sh networks --threads 1 mobilenet_v2      a section, on some networks
    scripts/benchmarks/x86.sh networks --against ncnn,mnn,iree       further peers
    scripts/benchmarks/x86.sh --prepare                              all that needs no quiet machine: nothing is timed
    scripts/benchmarks/x86.sh --page                                 only page and plot, from the results that are there

What is measured is written when it is there and kept by later calls of the same sources, unless they say `--again`; with
`--seconds` a call begins nothing more after that time. So the whole can be measured in short windows. Sections:

    networks   ours and peers in alternating blocks of runs, each in its own process, outputs compared before
    cold       the same, weights, activations and code pushed out of the caches before each run
    memory     the most resident bytes of a process that runs a network; the arena over its lower bound
    compile    seconds of `sepwise compile`
    import     seconds of processes that import sepwise
    peak       ours beside a loop of multiply-adds and the product of two matrices
    ragged     time per multiply-accumulate of ragged shapes over that of round ones
    choice     time of what the analytic model picks over that of the fastest candidate, over the whole zoo

`docs/benchmarks/x86_CPU.json` is written first, for this machine's kind of cpu; page and plot beside it are made from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from x86_kernels import list_workloads, prepare_choice, prepare_ragged, ragged_shapes, time_choice, time_ragged
from x86_networks import (
    IMPORTS,
    LIMITED,
    NETWORKS,
    TARGETS,
    Network,
    measure_memory,
    time_compilation,
    time_imports,
    time_peak,
    time_peers,
)
from x86_page import draw_plot, write_page

from sepwise import models
from sepwise.console import say
from sepwise.files import new_file
from sepwise.lowering.device import get as get_device
from sepwise.lowering.device import host_processor
from sepwise.lowering.peers import OURS, PEERS, missing_packages
from sepwise.lowering.tuning.sources import own_sources
from sepwise.passes.errors import InputError, SepwiseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Row = dict[str, Any]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PAGES: Final = REPOSITORY / "docs/benchmarks"

SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "networks": ("network", "threads", "peer"),
    "cold": ("network", "threads", "peer"),
    "memory": ("network", "runtime"),
    "compile": ("network",),
    "import": ("process",),
    "peak": ("network", "threads"),
    "ragged": ("kind", "channels", "side", "target"),
    "choice": ("workload", "target"),
}
"""The sections, and by which of their fields rows are told apart."""

AGAINST: Final = ("onnxruntime", "openvino")
MEMORY_AGAINST: Final = ("onnxruntime",)
PEAK_NETWORKS: Final = ("mobilenet_v1", "mobilenet_v2")
ROUNDS: Final = {"networks": 10, "cold": 6, "peak": 12, "ragged": 12, "choice": 24}


@dataclass(frozen=True, slots=True)
class Unit:
    """What is measured at once.

    Attributes:
        section: Where its rows belong.
        keys: By which they are told apart from others.
        prepare: Does what needs no quiet machine.
        measure: Gives the rows.
    """

    section: str
    keys: tuple[tuple[Any, ...], ...]
    prepare: Callable[[], object]
    measure: Callable[[], Sequence[Row]]


class Report:
    """The JSON file."""

    def __init__(self, path: Path) -> None:
        """Reads it, if it is there.

        Raises:
            InputError: It was measured on another machine.
        """
        self.path = path
        here = describe_machine()
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": here}
        if self.data["machine"] != here:
            raise InputError(f"{path}: was measured on {self.data['machine']}, this is {here}. Give another file with --output.")

    def rows(self, section: str) -> dict[tuple[Any, ...], Row]:
        """Gives the rows of a section by their keys."""
        return {tuple(row[field] for field in SECTIONS[section]): row for row in self.data.get(section, [])}

    def knows(self, unit: Unit) -> bool:
        """Tells whether all rows of a unit are there, measured with these sources."""
        known = self.rows(unit.section)
        return all(key in known and known[key].get("sources") == own_sources() for key in unit.keys)

    def put(self, section: str, rows: Sequence[Row]) -> None:
        """Adds rows, in place of those of the same keys, and writes the file.

        Other sources choose other kernels: of the choice nothing stays but what these have been measured with.
        """
        known = self.rows(section)
        if section == "choice":
            known = {key: row for key, row in known.items() if row.get("sources") == own_sources()}
        known |= {tuple(row[field] for field in SECTIONS[section]): {**row, "sources": own_sources()} for row in rows}
        self.data[section] = list(known.values())
        with new_file(self.path) as partial:
            partial.write_text(json.dumps(self.data, indent=1) + "\n")

    def write_page(self) -> None:
        """Makes page and plot."""
        with new_file(self.path.with_suffix(".md")) as partial:
            partial.write_text(write_page(self.data, self.path.stem))
        draw_plot(self.data, self.path.with_suffix(".svg"))


def describe_machine() -> dict[str, Any]:
    """Says what it is measured on."""
    host = get_device("host")
    return {
        "processor": host_processor() or "unnamed processor",
        "cpu": host.cpu,
        "cpus": os.cpu_count(),
        "l1d_bytes": host.l1d_bytes,
        "l2_bytes": host.l2_bytes,
        "l3_bytes": host.l3_bytes,
        "system": platform.system(),
    }


class Plan:
    """What is to be measured, a network or a kernel at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Takes what the command line says."""
        self._options = options
        self._folder: Path = options.folder.absolute()
        self._host = get_device("host")

    def units(self) -> Iterator[Unit]:
        """Lists all, section by section."""
        sections: dict[str, Callable[[str], Iterator[Unit]]] = {
            "networks": self._beside_peers,
            "cold": self._beside_peers,
            "memory": self._memory,
            "compile": self._compilation,
            "import": self._imports,
            "peak": self._peak,
            "ragged": self._ragged,
            "choice": self._choice,
        }
        for section in self._options.sections or SECTIONS:
            yield from sections[section](section)

    def _find(self, names: Iterable[str]) -> Iterator[Network]:
        """Finds the networks that were asked for, or else these."""
        for name in self._options.networks or names:
            yield Network(name, self._folder)

    def _rounds(self, section: str) -> int:
        return int(self._options.rounds or ROUNDS[section])

    def _beside_peers(self, section: str) -> Iterator[Unit]:
        cold = section == "cold"
        targets = self._options.targets[:1] if cold else self._options.targets
        peers = self._options.against or AGAINST
        for network in self._find(NETWORKS):
            for threads in self._options.threads:
                keys = tuple((network.name, threads, peer) for peer in peers)
                prepare = partial(network.prepare, targets, [threads])
                rounds = self._rounds(section)
                yield Unit(section, keys, prepare, partial(time_peers, network, threads, targets, peers, rounds, cold=cold))

    def _memory(self, section: str) -> Iterator[Unit]:
        peers = self._options.against or MEMORY_AGAINST
        for network in self._find(NETWORKS):
            keys = tuple((network.name, runtime) for runtime in (OURS, *peers))
            yield Unit(section, keys, partial(network.prepare, ["host"], [1]), partial(measure_memory, network, peers))

    def _compilation(self, section: str) -> Iterator[Unit]:
        for network in self._find(NETWORKS):
            yield Unit(section, ((network.name,),), lambda: None, partial(time_compilation, network))

    def _imports(self, section: str) -> Iterator[Unit]:
        yield Unit(section, tuple((process,) for process in IMPORTS), lambda: None, time_imports)

    def _peak(self, section: str) -> Iterator[Unit]:
        for network in self._find(PEAK_NETWORKS):
            for threads in self._options.threads:
                prepare = partial(network.prepare, ["host"], [threads])
                measure = partial(time_peak, network, threads, self._rounds(section))
                yield Unit(section, ((network.name, threads),), prepare, measure)

    def _ragged(self, section: str) -> Iterator[Unit]:
        for kind, channels, side in ragged_shapes():
            where = kind, channels, side, self._host, self._folder
            keys = ((kind, channels, side, self._host.name),)
            yield Unit(section, keys, partial(prepare_ragged, *where), partial(time_ragged, *where, self._rounds(section)))

    def _choice(self, section: str) -> Iterator[Unit]:
        for network in self._find((*NETWORKS, *(name for name in models.names() if name not in NETWORKS))):
            for workload in list_workloads(network, self._host):
                what = workload, self._host, self._folder, self._options.candidates
                keys = ((workload.key, self._host.name),)
                yield Unit(section, keys, partial(prepare_choice, *what), partial(time_choice, *what, self._rounds(section)))


def read_options() -> argparse.Namespace:
    """Reads the command line.

    Returns:
        The options.

    Raises:
        InputError: A peer is not known, or not installed.
    """

    def words(text: str) -> list[str]:
        return [word.strip() for word in text.split(",")]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="sections and networks; all if left out")
    parser.add_argument("--threads", type=numbers, default=[1, 2], metavar="N,...", help="1,2 if left out")
    parser.add_argument("--targets", type=words, default=list(TARGETS), metavar="TARGET,...", help="what ours is built for")
    known = ", ".join((*PEERS, *LIMITED))
    against = f"of {known}, or `all`; onnxruntime,openvino if left out"
    parser.add_argument("--against", type=words, metavar="PEER,...", help=against)
    parser.add_argument("--rounds", type=int, help="of alternating blocks, in place of each section's own number")
    parser.add_argument("--candidates", type=int, default=40, help="most candidates of a workload, for `choice`")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing more after so many")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--prepare", action="store_true", help="time nothing: compile, and compute references")
    parser.add_argument("--page", action="store_true", help="time nothing: make page and plot")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build/x86", help="where files are made")
    default = PAGES / f"x86_{get_device('host').cpu}.json"
    parser.add_argument("-o", "--output", type=Path, default=default, help="the JSON file; page and plot go beside it")
    options = parser.parse_args()
    options.sections = [name for name in options.names if name in SECTIONS]
    options.networks = [name for name in options.names if name not in SECTIONS]
    if options.against == ["all"]:
        options.against = list(PEERS)
    for peer in options.against or AGAINST:
        if peer not in PEERS and peer not in LIMITED:
            raise InputError(f"Peer '{peer}': unknown; known are {known}.")
        if missing := missing_packages(LIMITED[peer][0] if peer in LIMITED else peer):
            raise InputError(f"Peer '{peer}': {', '.join(missing)} is not installed here: pip install 'sepwise[peers]'.")
    return options


def main() -> None:
    """Measures, adds to the JSON file, makes page and plot."""
    started = time.monotonic()
    options = read_options()
    report = Report(options.output)
    for unit in Plan(options).units() if not options.page else ():
        if options.prepare:
            unit.prepare()
            continue
        if report.knows(unit) and not options.again:
            continue
        if time.monotonic() - started > options.seconds:
            say(f"{options.seconds:.0f} seconds are over; the same command goes on with {unit.section} {unit.keys[0]}")
            break
        say(f"{unit.section}: {', '.join(map(str, unit.keys[0]))}")
        report.put(unit.section, unit.measure())
    if not options.prepare:
        report.write_page()


if __name__ == "__main__":
    try:
        main()
    except SepwiseError as error:
        sys.exit(str(error))
