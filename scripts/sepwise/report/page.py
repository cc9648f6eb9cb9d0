"""The report as one self-contained HTML page: no network, no framework, readable without its script.

Order of the page: the verdict and what it is about, what failed, what each kind of check claims, error against
tolerance kernel by kernel, the distribution over all elements, what the passes did, every check.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from sepwise.report.elements import definitions, document, grid, number_cell, scrolling, section, sortable
from sepwise.report.markup import Child, Markup, element, join
from sepwise.report.plot import Point, histogram, meter, power_of_two, ratio_plot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepwise.passes.equivalence import Check, Verification
    from sepwise.passes.equivalence.reproducer import Reproducer
    from sepwise.passes.pipeline import PassReport
    from sepwise.report.provenance import Provenance

__all__ = ["SCOPES", "render"]

_FAILURES_SHOWN: Final = 25
_NODES_SHOWN: Final = 6
_NUMERIC: Final = frozenset({"#", "Kernels", "Not passed", "Rewrites", "Error", "Bound", "Largest error"})
"""Heads of columns of numbers."""

_ORDER: Final = {"failed": 0, "skipped": 1, "passed": 2}
_MARKS: Final = {"passed": "✓", "failed": "✗", "skipped": "?"}

SCOPES: Final = {
    "graph": (
        "Graph: is a rewrite right?",
        "Both graphs are evaluated in float64, where a right rewrite differs by nothing but the rounding of the constants "
        "that it stores. The root mean square error of an output may not exceed what rounding every constant of the original "
        "at random does to that output, measured over seeded runs; of fewer than 100 elements 3 times that, and never less than "
        "16 times what rounding in float64 does to it.",
    ),
    "kernel": (
        "Kernel: is the code right?",
        "Each kernel runs alone on the target, fed the reference's own tensors, and then what is drawn for it so that it hurts. "
        "Every element has to lie within the rigorous bound that a running error analysis gives for float32 arithmetic in any "
        "order of summation; no right kernel exceeds it on any input.",
    ),
    "model": (
        "Model: is the whole right on this target?",
        "The whole network runs at once. The root mean square error may not exceed what rounding after every operation does to "
        "the outputs, measured over seeded float64 runs, and no element may be off by more than 16 times its own such deviation.",
    ),
}
"""For each scope the section of docs/verification.md that explains it, and how its tolerance is derived."""


def render(verdict: Verification, provenance: Provenance) -> str:
    """Writes the page.

    Args:
        verdict: What `sepwise verify` found.
        provenance: How it came about.

    Returns:
        A whole HTML document.
    """
    script = (files("sepwise.report") / "page.js").read_text(encoding="utf-8")
    return document(
        f"{_subject(verdict)}: {_word(verdict)}",
        [
            element("a", "Skip to the checks", href="#checks", class_="skip"),
            element("header", _verdict(verdict), _facts(verdict, provenance)),
        ],
        [
            _failures(verdict),
            _scopes(verdict.checks),
            _kernels(verdict.checks),
            _distributions(verdict.checks),
            _passes(verdict),
            _table(verdict.checks),
        ],
        version=provenance.versions.get("sepwise", ""),
        script=script,
    )


# The top ---------------------------------------------------------------------------------------------------------------


def _subject(verdict: Verification) -> str:
    if verdict.against is not None:
        return f"{verdict.model} against {verdict.against}"
    return f"{verdict.model} on {verdict.target}"


def _word(verdict: Verification) -> str:
    return "passed" if verdict.passed else "not passed"


def _verdict(verdict: Verification) -> Markup:
    counts = Counter(check.status for check in verdict.checks)
    state = "passed" if verdict.passed else "failed"
    mark = element("span", _MARKS[state], aria_hidden="true")
    badge = element("p", mark, " ", _word(verdict).capitalize(), class_=f"verdict {state}")
    if verdict.passed:
        worst = max(verdict.checks, key=_rank)
        where = element("a", worst.name, href=f"#{_anchor(verdict.checks, worst)}")
        ratio = f"{_spell(worst.worst_ratio)} of its tolerance (" if worst.worst_ratio else "none: all results are exact ("
        summary = join([f"{_several(len(verdict.checks), 'check')} made, all passed. The largest error is {ratio}", where, ")."])
    elif not verdict.checks:
        summary = Markup("No check was made, so nothing is proven.")
    else:
        told = [f"{counts['failed']} of {_several(len(verdict.checks), 'check')} failed"] if counts["failed"] else []
        if counts["skipped"]:
            told.append(f"{counts['skipped']} could not be made, which counts as not passed")
        summary = join(" and ".join(told) + ".")
    return join([element("h1", _subject(verdict)), badge, element("p", summary, class_="summary")])


def _facts(verdict: Verification, provenance: Provenance) -> Markup:
    facts: list[tuple[str, Child]] = [("Model", verdict.model)]
    facts.append(("Against", verdict.against) if verdict.against is not None else ("Target", provenance.target))
    if verdict.inputs:
        facts.append(("Inputs", ", ".join(verdict.inputs)))
    if verdict.kernel_inputs:
        facts.append(("Inputs of kernels", ", ".join(verdict.kernel_inputs)))
    facts += [("Answer", str(answer)) for answer in verdict.agreement]
    facts += [("Note", note) for note in verdict.notes]
    date = element("time", f"{provenance.date:%Y-%m-%d %H:%M %Z}", datetime=provenance.date.isoformat(timespec="seconds"))
    facts += [("Date", date), ("Machine", provenance.machine)]
    facts.append(("Versions", ", ".join(f"{name} {text}" for name, text in provenance.versions.items())))
    facts.append(("Command", element("code", provenance.command)))
    return definitions(facts, "facts")


# What failed -----------------------------------------------------------------------------------------------------------


def _failures(verdict: Verification) -> Markup | None:
    checks = verdict.checks
    wrong = sorted((check for check in checks if not check.passed), key=lambda check: _ORDER[check.status])
    if not wrong:
        return None
    cards = [_card(check, _anchor(checks, check)) for check in wrong[:_FAILURES_SHOWN]]
    rest = len(wrong) - len(cards)
    table = element("a", "the table", href="#checks")
    more = element("p", f"{_several(rest, 'more such check')} in ", table, ".") if rest else None
    return section("failures", "What did not pass", _finding(verdict.reproducer), cards, more)


def _finding(reproducer: Reproducer | None) -> Markup | None:
    """What `--bisect` narrowed a failure down to."""
    if reproducer is None:
        return None
    facts: list[tuple[str, Child]] = []
    if reproducer.nodes:
        facts.append(("Nodes", _nodes(reproducer.nodes)))
    if reproducer.folder is not None:
        facts.append(("Files", element("code", str(reproducer.folder))))
    facts.append(("Command", element("code", reproducer.command)))
    facts.append(("Reproduced", "by these files alone" if reproducer.reproduces else "no: only the whole model shows it"))
    heading = element("h3", "Narrowed down")
    lines = [element("p", line, class_="reason") for line in reproducer.finding]
    return element("article", heading, lines, definitions(facts, "facts"), class_="card failed")


def _card(check: Check, anchor: str) -> Markup:
    facts: list[tuple[str, Child]] = []
    if check.pass_name:
        facts.append(("Pass", element("code", _breakable(check.pass_name))))
    if check.strategy:
        facts.append(("Strategy", check.strategy))
    if check.nodes:
        facts.append(("Nodes", _nodes(check.nodes)))
    if check.status != "skipped":
        facts.append((f"Error and bound ({_judged_by(check)})", _margin(check)))
        facts.append(("Largest error", _spell(check.max_abs_error)))
        if check.rms_error is not None and check.rms_bound is not None and _judged_by(check) != "RMS":
            facts.append(("RMS error", f"{_spell(check.rms_error)}, allowed {_spell(check.rms_bound)}"))
        facts.append(("Error / tolerance", _ratio_text(check)))
    if check.worst_index is not None:
        facts.append(("Worst element", element("code", _breakable(_place(check)))))
    if check.computed is not None and check.expected is not None:
        facts.append(("Computed there", element("code", _value(check.computed))))
        facts.append(("Right is", element("code", _value(check.expected))))
    if check.reproducer:
        facts.append(("Reproducer", element("code", check.reproducer)))
    heading = element("h3", _status(check.status), " ", element("a", _breakable(check.name), href=f"#{anchor}"))
    scope = element("p", f"{check.scope}: {check.reason}", class_="reason")
    return element("article", heading, scope, definitions(facts, "facts"), class_=f"card {check.status}")


# The claims ------------------------------------------------------------------------------------------------------------


def _scopes(checks: Sequence[Check]) -> Markup:
    cards = []
    for scope, (source, sentence) in SCOPES.items():
        found = [check for check in checks if check.scope == scope]
        if not found:
            continue
        worst = max(found, key=_rank)
        counts = Counter(str(check.status) for check in found)
        told = ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])
        ratio = [meter(worst.worst_ratio, worst.status), element("strong", _ratio_text(worst)), " error / tolerance"]
        cited = element("p", element("cite", "docs/verification.md"), f', section "{source}"', class_="source")
        heading = element("h3", scope.capitalize(), " ", element("small", told))
        cards.append(element("article", heading, element("p", ratio), element("p", sentence), cited, class_="card"))
    return section("claims", "What was checked, and how tolerances are derived", element("div", cards, class_="cards"))


# Kernels ---------------------------------------------------------------------------------------------------------------


def _kernels(checks: Sequence[Check]) -> Markup | None:
    kernels = [check for check in checks if check.scope == "kernel"]
    if not kernels:
        return None
    points = [
        Point(index + 1, check.name, check.worst_ratio, check.status, _tooltip(check), f"check-{index}")
        for index, check in enumerate(checks)
        if check.scope == "kernel"
    ]
    worst = max(kernels, key=_rank)
    label = (
        f"Error over tolerance of {_several(len(kernels), 'kernel')} in the order of execution. Largest: {worst.name} "
        f"with {_ratio_text(worst)}. The table of all checks has every number."
    )
    caption = (
        "Largest error over tolerance, kernel by kernel. A circle passed, a diamond failed, a square was skipped. What lies "
        "in the shaded area is wrong. Point at a mark for its numbers, click it for its row in the table."
    )
    plot = ratio_plot(points, axis="number of the check, in the order of execution", label=label)
    figure = element("figure", scrolling(plot, "Plot of error over tolerance"), element("figcaption", caption))
    return section("kernels", "Error against tolerance, by kernel", figure, _strategies(kernels))


def _tooltip(check: Check) -> str:
    lines = [check.name, f"{check.status}, {check.strategy or 'no strategy'}", f"nodes: {', '.join(check.nodes) or 'none'}"]
    if check.status == "skipped":
        return "\n".join([*lines, check.reason])
    lines.append(f"error / tolerance {_ratio_text(check)}")
    lines.append(f"{_judged_by(check)}: {_margin(check)}")
    if check.worst_index is not None:
        lines.append(f"worst at {_place(check)}")
    if check.computed is not None and check.expected is not None:
        lines.append(f"computed {_value(check.computed)}, right is {_value(check.expected)}")
    return "\n".join(lines)


def _strategies(kernels: Sequence[Check]) -> Markup:
    rows: list[Markup] = []
    by_strategy: dict[str, list[Check]] = {}
    for check in kernels:
        by_strategy.setdefault(check.strategy or "none", []).append(check)
    for strategy, found in sorted(by_strategy.items(), key=lambda item: -_rank(max(item[1], key=_rank))):
        worst = max(found, key=_rank)
        wrong = sum(not check.passed for check in found)
        cells = [
            element("th", strategy, scope="row"),
            number_cell(len(found), str(len(found))),
            number_cell(wrong, str(wrong)),
            _ratio_cell(worst),
        ]
        rows.append(element("tr", cells))
    heads = ["Strategy", "Kernels", "Not passed", "Largest error / tolerance"]
    return scrolling(grid(heads, rows, "Kernels by strategy", numeric=_NUMERIC, class_="compact"), "Table of kernels by strategy")


# Elements --------------------------------------------------------------------------------------------------------------

_ELEMENTS: Final = {
    "kernel": ("Outputs of all kernels", "Each is set against its own bound.", True),
    "model": ("Outputs of the model", "Each is set against 16 times its own deviation.", True),
    "graph": (
        "Outputs of the rewritten graphs",
        "Each is set against the tolerance of the root mean square, which single elements of a right rewrite may exceed.",
        False,
    ),
}
"""For each scope what its histogram is of, what the elements are set against, and whether each has to stay within that."""


def _distributions(checks: Sequence[Check]) -> Markup | None:
    from sepwise.passes.equivalence import HISTOGRAM_EDGES

    lowest = round(math.log2(HISTOGRAM_EDGES[0]))
    figures = []
    for scope, (heading, meaning, judged) in _ELEMENTS.items():
        found = [check.histogram for check in checks if check.scope == scope and check.histogram]
        counts = [sum(column) for column in zip(*found, strict=True)]
        if not any(counts):
            continue
        sentence = _describe(counts, lowest)
        axis = "error / tolerance of an element"
        plot = histogram(counts, lowest, axis=axis, label=f"{heading}. {sentence} {meaning}", judged=judged)
        figures.append(element("figure", element("h3", heading), plot, element("figcaption", f"{sentence} {meaning}")))
    if not figures:
        return None
    return section("elements", "Error over tolerance, element by element", element("div", figures, class_="figures"))


def _describe(counts: Sequence[int], lowest: int) -> str:
    """The histogram in words, which is its text alternative too."""
    total = sum(counts)
    beyond = sum(counts[2 - lowest :])
    exact = f"{counts[0] / total:.1%} exact" if counts[0] else "none exact"
    told = [f"{_several(total, 'element')}: {exact}"]
    last = max(place for place, count in enumerate(counts) if count)
    if beyond:
        told.append(f"{beyond:,} above the tolerance")
    elif last:
        upper = power_of_two(lowest + last - 1)
        told.append(f"all within {upper} of the tolerance" if last < 1 - lowest else "all within the tolerance")
    return ", ".join(told) + "."


# Passes ----------------------------------------------------------------------------------------------------------------


def _passes(verdict: Verification) -> Markup | None:
    if not verdict.passes:
        return None
    rows = [_pass_row(each, [check for check in verdict.checks if check.pass_name == each.name]) for each in verdict.passes]
    heads = ["Pass", "Rewrites", "Verdict", "Largest error / tolerance", "Refused"]
    text = "In the order in which they ran. A pass refuses a place where its rewrite would be wrong; the reason says why."
    intro = element("p", text)
    table = scrolling(grid(heads, rows, "Passes", numeric=_NUMERIC), "Table of passes")
    return section("passes", "What the passes did", intro, table)


def _pass_row(outcome: PassReport, checks: Sequence[Check]) -> Markup:
    worst = max(checks, key=_rank, default=None)
    if worst is None:
        verdict = [element("td", "changed nothing", class_="quiet"), element("td")]
    else:
        status = min((check.status for check in checks), key=_ORDER.__getitem__)
        verdict = [element("td", _status(status)), _ratio_cell(worst)]
    cells = [
        element("th", element("code", _breakable(outcome.name)), scope="row"),
        number_cell(outcome.fired, str(outcome.fired)),
        *verdict,
        element("td", _refusals(outcome.refused) if outcome.refused else element("span", "nothing", class_="quiet")),
    ]
    return element("tr", cells)


def _refusals(refused: Sequence[tuple[str, str]]) -> Markup:
    """The refused nodes, those with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for node, reason in refused:
        by_reason.setdefault(reason, []).append(node)
    items = [element("li", reason, ": ", _nodes(nodes)) for reason, nodes in by_reason.items()]
    return element("details", element("summary", _several(len(refused), "node")), element("ul", items))


# All checks ------------------------------------------------------------------------------------------------------------


def _table(checks: Sequence[Check]) -> Markup:
    ordered = sorted(enumerate(checks), key=lambda item: _ORDER[item[1].status])
    rows = [_row(check, f"check-{index}") for index, check in ordered]
    heads = ["#", "Status", "Check", "Scope", "Error / bound", "Error", "Bound", "Judged by", "Largest error", "Worst element"]
    search = element(
        "p",
        element("label", "Show only rows with ", element("input", type="search", id="filter", autocomplete="off")),
        element("output", id="shown", role="status"),
        class_="filter",
        hidden=True,
    )
    text = (
        "What did not pass comes first. Error and bound are of what decided: the worst element, the one with the largest ratio "
        "of error to bound, or, as in scope graph, the root mean square (RMS; RMS / sigma where several outputs count each in "
        "units of its own bound). The largest error need not be that of the worst element, as bounds differ."
    )
    table = scrolling(grid(heads, rows, "All checks", numeric=_NUMERIC, id="all-checks"), "Table of all checks")
    return section("checks", "All checks", element("p", text), search, table)


def _row(check: Check, anchor: str) -> Markup:
    below = [check.strategy, " · " if check.strategy and check.nodes else None, _folded_nodes(check.nodes)]
    head = [_breakable(check.name)]
    if check.strategy or check.nodes:
        head.append(element("div", below, class_="quiet"))
    if check.reason:
        head.append(element("div", check.reason, class_="reason"))
    margin = check.margin
    number = int(anchor.rpartition("-")[2]) + 1
    cells = [
        number_cell(number, str(number)),
        element("td", _status(check.status), data_value=-_ORDER[check.status]),
        element("th", head, scope="row"),
        element("td", check.scope),
        _ratio_cell(check),
        number_cell(margin.error if margin else None, _spell(margin.error) if margin else ""),
        number_cell(margin.bound if margin else None, _spell(margin.bound) if margin else ""),
        element("td", margin.of if margin else None),
        number_cell(check.max_abs_error if margin else None, _spell(check.max_abs_error) if margin else ""),
        element("td", _worst_element(check)),
    ]
    return element("tr", cells, id=anchor, class_=check.status)


def _worst_element(check: Check) -> Markup | None:
    if check.worst_index is None:
        return None
    place = element("code", _breakable(_place(check)))
    if check.computed is None or check.expected is None:
        return place
    values = element("div", f"computed {_value(check.computed)}, right is {_value(check.expected)}", class_="quiet")
    return join([place, values])


# Pieces ----------------------------------------------------------------------------------------------------------------


def _ratio_cell(check: Check) -> Markup:
    bar = meter(check.worst_ratio, check.status)
    return element("td", bar, " ", _ratio_text(check), class_="ratio", data_value=sortable(_rank(check)))


def _status(status: str) -> Markup:
    return element("span", element("span", _MARKS[status], aria_hidden="true"), f" {status}", class_=f"status {status}")


def _nodes(names: Sequence[str]) -> Markup:
    """Names of nodes, those after the first few folded away."""
    shown, folded = (_breakable(", ".join(each)) for each in (names[:_NODES_SHOWN], names[_NODES_SHOWN:]))
    if not folded:
        return shown
    rest = element("details", element("summary", f"and {len(names) - _NODES_SHOWN} more"), folded)
    return join([shown, " ", rest])


def _folded_nodes(names: Sequence[str]) -> Markup:
    """Names of nodes for a table: one by itself, several folded away."""
    if len(names) < 2:
        return _breakable("".join(names))
    return element("details", element("summary", _several(len(names), "node")), element("div", _breakable(", ".join(names))))


def _breakable(name: str) -> Markup:
    """A name that may be broken behind its parts, which HTML does at spaces only."""
    return join([[part, element("wbr") if part in "_./" else None] for part in re.split("([_./])", name) if part])


def _anchor(checks: Sequence[Check], check: Check) -> str:
    return f"check-{next(index for index, each in enumerate(checks) if each is check)}"


def _rank(check: Check) -> float:
    """For sorting: skipped lowest, then by ratio, failures without a finite one on top."""
    if check.status == "skipped":
        return -1.0
    return math.inf if check.worst_ratio is None else check.worst_ratio


def _ratio_text(check: Check) -> str:
    if check.status == "skipped":
        return "not made"
    return "∞" if check.worst_ratio is None else _spell(check.worst_ratio)


def _judged_by(check: Check) -> str:
    return "nothing" if check.margin is None else check.margin.of


def _margin(check: Check) -> str:
    return "none" if check.margin is None else f"{_spell(check.margin.error)}, allowed {_spell(check.margin.bound)}"


def _place(check: Check) -> str:
    index = ", ".join(map(str, check.worst_index or ()))
    return f"{check.worst_tensor or ''}[{index}]"


def _spell(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def _value(value: float) -> str:
    return f"{value:.9g}"


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
