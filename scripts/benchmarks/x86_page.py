"""The page and the plot of what `x86.py` has measured."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, Final

from sepwise.console import number
from sepwise.files import new_file
from sepwise.lowering.peers import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    Row = dict[str, Any]

__all__ = ["best_speedups", "draw_plot", "geometric_mean", "write_page"]

BEST_OF: Final = ("onnxruntime", "openvino")
"""The peers whose better one counts."""

COST_OF_RAGGED: Final = 1.5
"""Most that a ragged shape's multiply-accumulate is to take, over its round neighbour's."""

WORST_LISTED: Final = 10

WARM: Final = """\
Blocks of runs of all runtimes alternate, each runtime in a process of its own, its threads on as many cpus. Before anything is
timed its outputs are held against the float64 oracle, by the bound of `sepwise verify`."""

YARDSTICKS: Final = {"fma": "multiply-adds", "sgemm": "numpy's sgemm", "torch-sgemm": "torch's"}
"""What ours is a share of, by its field of a row, and its title."""

COLD: Final = """\
As above, but before each run a sweep through more memory than all caches hold pushes out weights, activations and code."""

INK: Final = "#808080"
"""Of text and lines in the plot: it stands out from white and from black."""

BARS: Final = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")


def geometric_mean(values: Iterable[float]) -> float:
    """Gives the geometric mean of positive numbers, at least one."""
    return math.exp(statistics.fmean(map(math.log, values)))


def best_speedups(rows: Sequence[Row], target: str, threads: int) -> dict[str, tuple[float, float]]:
    """Compares with the better of `BEST_OF` on each network.

    Args:
        rows: Of the section `networks` or `cold`.
        target: What ours was built for.
        threads: Of all.

    Returns:
        By network the least speedup over those peers, by medians and by minima; without networks where one has none.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["threads"] == threads and row["peer"] in BEST_OF and target in row["ours"]:
            ours = row["ours"][target]
            found.setdefault(row["network"], {})[row["peer"]] = ours["speedup"], ours["minimum_speedup"]
    return {
        network: (min(by[0] for by in peers.values()), min(by[1] for by in peers.values()))
        for network, peers in found.items()
        if len(peers) == len(BEST_OF)
    }


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _range(values: Iterable[Any]) -> str:
    """The only value, or the least and the largest."""
    known = sorted(set(values))
    return " to ".join(map(str, dict.fromkeys((known[0], known[-1]))))


def _dates(rows: Sequence[Row]) -> str:
    return _range(row["date"] for row in rows)


def _when(rows: Sequence[Row]) -> str:
    """Dates, and the states of the sources that were measured."""
    sources = sorted({row.get("sources", "unknown") for row in rows})
    return f"{_dates(rows)}, sources {', '.join(sources)}"


def _names(rows: Iterable[Row], field: str) -> list[Any]:
    return list(dict.fromkeys(row[field] for row in rows))


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f}"


def _write_peers(rows: Sequence[Row], *, cold: bool) -> str:
    """Tables of networks beside peers, one for each target and number of threads."""
    parts = []
    targets = list(dict.fromkeys(target for row in rows for target in row["ours"]))
    for target in targets:
        for threads in sorted(_names(rows, "threads")):
            chosen = [row for row in rows if row["threads"] == threads and (target in row["ours"] or row["failure"])]
            if any(row["ours"] for row in chosen):
                parts.append(_write_target(chosen, target, threads))
    versions = {row["peer"]: row["version"] for row in rows if not row["failure"]}
    said = ", ".join(f"{peer} {version}" for peer, version in versions.items())
    failed = [row for row in rows if row["failure"]]
    failures = [f"- {row['network']}, {row['threads']} thread(s), {row['peer']}: {row['failure']}" for row in failed]
    left_out = "\n\nNot timed:\n\n" + "\n".join(failures) if failures else ""
    return f"""{COLD if cold else WARM}

float32, batch 1, {_range(row["rounds"] for row in rows)} rounds, {_when(rows)}. Cells: the peer's time
over ours, by the median over rounds of the ratio of medians, and in brackets by the fastest runs; above 1 ours is faster. The
last column is by the better one of ONNX Runtime and OpenVINO. Versions: {said}.

{(chr(10) * 2).join(parts)}{left_out}"""


def _write_target(rows: Sequence[Row], target: str, threads: int) -> str:
    """The table of one target and number of threads."""
    peers = _names(rows, "peer")
    best = best_speedups(rows, target, threads)
    lines = []
    for network in _names(rows, "network"):
        found = {row["peer"]: row for row in rows if row["network"] == network}
        ours = next((row["ours"][target] for row in found.values() if target in row["ours"]), None)
        if ours is None:
            continue
        measured = [found[peer]["ours"].get(target, {}) if peer in found else {} for peer in peers]
        cells = [_pair([each[by] for by in ("speedup", "minimum_speedup") if each]) for each in measured]
        shape = " x ".join(map(str, next(iter(found.values()))["input"]))
        took = [number(ours[by] / 1e3) for by in ("median_us", "minimum_us")]
        lines.append([network, shape, *took, *cells, f"**{_pair(best.get(network, ()))}**"])
    over_each = [_over_all(rows, peer, target) for peer in peers]
    means, least = zip(*over_each, strict=True)
    lines.append(["geometric mean", "", "", "", *means, f"**{_pair(map(geometric_mean, zip(*best.values(), strict=True)))}**"])
    lines.append(["least", "", "", "", *least, f"**{_pair(map(min, zip(*best.values(), strict=True)))}**"])
    columns = ["network", "input", "ours, ms", "fastest, ms", *peers, "the better of two"]
    return f"### {target}, {threads} thread{'s' if threads > 1 else ''}\n\n{_table(columns, lines)}"


def _pair(numbers: Iterable[float]) -> str:
    """By medians, and in brackets by the fastest runs; a dash where there is nothing."""
    found = list(numbers)
    return f"{found[0]:.2f} ({found[1]:.2f})" if found else "-"


def _over_all(rows: Sequence[Row], peer: str, target: str) -> tuple[str, str]:
    """Geometric mean and least of the speedups over one peer."""
    found = [row["ours"][target] for row in rows if row["peer"] == peer and target in row["ours"]]
    pairs = [(ours["speedup"], ours["minimum_speedup"]) for ours in found]
    return _pair(map(geometric_mean, zip(*pairs, strict=True))), _pair(map(min, zip(*pairs, strict=True)))


def _write_memory(rows: Sequence[Row]) -> str:
    peers = [runtime for runtime in _names(rows, "runtime") if runtime != OURS]
    lines = []
    for network in _names(rows, "network"):
        found = {row["runtime"]: row for row in rows if row["network"] == network and not row["failure"]}
        if OURS not in found:
            continue
        ours = found[OURS]
        cells = [_resident(found.get(runtime)) for runtime in (OURS, *peers)]
        bound = ours["arena_lower_bound_bytes"]
        arena = [_megabytes(ours["arena_bytes"]), _megabytes(bound), f"{ours['arena_bytes'] / bound:.3f}" if bound else "-"]
        lines.append([network, _megabytes(ours["constant_bytes"]), *arena, *cells])
    columns = ["network", "weights", "arena", "lower bound", "arena / bound", "ours", *peers]
    start = _megabytes(max(row["start"] for row in rows if not row["failure"]))
    return f"""One thread, one file loaded, in MB of 10^6 bytes; {_when(rows)}. For each runtime the most bytes that were
resident in the course of runs / up to then, loading counted, without the {start} MB of the interpreter. The lower bound is the
largest sum of live values over all kernels; scratch is in the arena too.

{_table(columns, lines)}"""


def _resident(row: Row | None) -> str:
    if row is None:
        return "-"
    return " / ".join(_megabytes(row[when] - row["start"]) for when in ("running", "loading"))


def _write_compilation(rows: Sequence[Row], imports: Sequence[Row]) -> str:
    parts = []
    if rows:
        lines = [[row["network"], f"{row['seconds']:.1f}", f"{row['build_seconds']:.1f}", f"{row['kernels']}"] for row in rows]
        parts.append(f"`sepwise compile` for this machine, {_when(rows)}: seconds of the whole process, and of the build in it.")
        parts.append(_table(["network", "process, s", "build, s", "kernels"], lines))
    if imports:
        lines = [[row["process"], f"{row['median_s']:.3f}", f"{row['minimum_s']:.3f}"] for row in imports]
        parts.append(f"Seconds of processes that import sepwise, beside the bare interpreter, {_when(imports)}.")
        parts.append(_table(["process", "median, s", "fastest, s"], lines))
    return "\n\n".join(parts)


def _write_peak(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["network"],
            f"{row['threads']}",
            number(row["ours"]["median_us"] / 1e3),
            f"{row['macs'] / row['ours']['median_us'] / 1e3:.0f}",
            *(f"{row[name]['macs'] / row[name]['median_us'] / 1e3:.0f}" if name in row else "-" for name in YARDSTICKS),
            *(f"{100 * row[name]['share']:.0f} %" if name in row else "-" for name in YARDSTICKS),
        ]
        for row in rows
    ]
    titles = YARDSTICKS.values()
    columns = ["network", "threads", "ours, ms", "ours", *titles, *(f"of {title}" for title in titles)]
    return f"""Rates in GMAC/s, in alternating blocks, {_when(rows)}: ours, a loop of multiply-adds that stay in registers, and
the product of two matrices of 1024 x 1024 by numpy's library ({rows[0]["sgemm"]["version"]}) and by torch's. The last columns are
medians over rounds of the ratios within the round.

{_table(columns, lines)}"""


def _write_ragged(rows: Sequence[Row]) -> str:
    lines = []
    for kind in _names(rows, "kind"):
        found = [row for row in rows if row["kind"] == kind]
        worst = max(found, key=lambda row: row["ratio"])
        over = sum(row["ratio"] > COST_OF_RAGGED for row in found)
        shape = f"{worst['channels']} x {worst['side']} x {worst['side']}, {number(worst['median_us'])} us"
        mean = geometric_mean(row["ratio"] for row in found)
        lines.append([kind, f"{len(found)}", f"{mean:.2f}", f"{worst['ratio']:.2f}", shape, f"{over}"])
    ratios = [row["ratio"] for row in rows]
    columns = ["kind", "shapes", "geometric mean", "worst", "at", f"above {COST_OF_RAGGED}"]
    channels, sides = (", ".join(map(str, sorted(set(_names(rows, field))))) for field in ("channels", "side"))
    return f"""Time per multiply-accumulate over that of the nearest round shape, one thread, {_when(rows)}. Channels {channels};
sides {sides}; round are multiples of 32 channels and of 8 pixels. Borders count as multiply-accumulates, as everywhere.
[choice.md](../choice.md#ragged-shapes) says where they come from.

{_table(columns, lines)}

All {len(rows)}: geometric mean **{geometric_mean(ratios):.2f}**, worst **{max(ratios):.2f}**."""


def _write_choice(rows: Sequence[Row]) -> str:
    lines = []
    for kind in (*sorted(_names(rows, "kind")), "all"):
        ratios = [row["ratio"] for row in rows if kind in (row["kind"], "all")]
        lines.append([kind, f"{len(ratios)}", f"{geometric_mean(ratios):.3f}", f"{max(ratios):.2f}"])
    worst = sorted(rows, key=lambda row: -row["ratio"])[:WORST_LISTED]
    keys = ["`{}`".format(row["workload"].replace("|", r"\|")) for row in worst]
    listed = [
        [key, f"{row['ratio']:.2f}", number(row["pick_us"]), row["pick"], row["best"]]
        for key, row in zip(keys, worst, strict=True)
    ]
    most, drawn = (max(row.get(field, 0) for row in rows) for field in ("timed", "drawn"))
    found = sum(row.get("best_drawn", False) for row in rows)
    others = f" and {drawn} drawn from the others, one of which was fastest for {found} kernels" if drawn else ""
    return f"""For each different kernel: time of what the model picks over that of the fastest of its candidates, one thread,
{_when(rows)}. Candidates are what strategies declare, all or the {most - drawn} that are predicted fastest{others}; the
fastest few and the pick were timed a second time, and that counts.

{_table(["kind", "workloads", "geometric mean", "worst"], lines)}

The worst:

{_table(["workload", "ratio", "pick, us", "pick", "fastest"], listed)}"""


def write_page(report: Row, stem: str) -> str:
    """Writes the page of a report.

    Args:
        report: The content of the JSON file; sections may be missing.
        stem: The name of the files, without `.json` and `.svg`.

    Returns:
        Markdown.
    """
    machine = report["machine"]
    caches = ", ".join(f"{machine[f'{level}_bytes'] // 1024:,} KiB {level.upper()}" for level in ("l1d", "l2", "l3"))
    parts = [
        f"""# On x86, beside other runtimes

Untuned, on {machine["processor"]} ({machine["cpu"]}, {machine["cpus"]} cpus, {caches}), made by `scripts/benchmarks/x86.sh`,
which says how; every number is in [{stem}.json]({stem}.json). The target `x86-64-v3` runs on the same machine and leaves its
wider units unused. Of the peers only OpenVINO can be told to do so, and not in all it does (`openvino-avx2`); the others use
what the machine has. "Sources" is the state of `lowering/` that was measured, by the digest of `lowering/tuning/sources.py`."""
    ]
    if networks := report.get("networks"):
        plot = f"\n\n![The peer's time over ours]({stem}.svg)" if best_speedups(networks, "host", 1) else ""
        parts.append(f"## Networks{plot}\n\n{_write_peers(networks, cold=False)}")
    if cold := report.get("cold"):
        parts.append(f"## With cold caches\n\n{_write_peers(cold, cold=True)}")
    if memory := report.get("memory"):
        parts.append(f"## Memory\n\n{_write_memory(memory)}")
    compilation, imports = report.get("compile", []), report.get("import", [])
    if compilation or imports:
        parts.append(f"## Compiling and importing\n\n{_write_compilation(compilation, imports)}")
    if peak := report.get("peak"):
        parts.append(f"## Share of the peak\n\n{_write_peak(peak)}")
    if ragged := report.get("ragged"):
        parts.append(f"## Ragged shapes\n\n{_write_ragged(ragged)}")
    if choice := report.get("choice"):
        parts.append(f"## The model's choice\n\n{_write_choice(choice)}")
    return "\n\n".join(parts) + "\n"


def draw_plot(report: Row, path: Path) -> None:
    """Draws each network's speedup over the better of ONNX Runtime and OpenVINO, a bar for each number of threads.

    Args:
        report: The content of the JSON file.
        path: The SVG file; none is written where there is nothing to draw.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = report.get("networks", [])
    series = {threads: found for threads in sorted(_names(rows, "threads")) if (found := best_speedups(rows, "host", threads))}
    if not series:
        return
    networks = list(dict.fromkeys(network for found in series.values() for network in found))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sepwise", "text.color": INK, "axes.edgecolor": INK}):
        figure = Figure(figsize=(8, 1.6 + 0.42 * len(networks)), layout="constrained")
        axes = figure.add_subplot()
        thickness = 0.8 / len(series)
        for place, (threads, found) in enumerate(series.items()):
            offset = (place - (len(series) - 1) / 2) * thickness
            points = [(index + offset, found[network][0]) for index, network in enumerate(networks) if network in found]
            label = f"{threads} thread{'s' if threads > 1 else ''}, geometric mean {geometric_mean(y for _, y in points):.2f}"
            heights, lengths = zip(*points, strict=True)
            bars = axes.barh(heights, lengths, 0.9 * thickness, color=BARS[place % len(BARS)], label=label)
            axes.bar_label(bars, fmt="%.2f", padding=3, color=INK, fontsize=8)
        axes.axvline(1.0, color=INK, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(networks)), networks)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("time of the better of ONNX Runtime and OpenVINO / time of sepwise", color=INK)
        axes.set_title(f"float32, untuned, {report['machine']['processor']}, {_dates(rows)}", color=INK, fontsize=10)
        figure.legend(loc="outside upper center", ncols=len(series), framealpha=0.0, labelcolor=INK)
        with new_file(path) as partial:
            figure.savefig(partial, format="svg", transparent=True, metadata={"Date": None})
