"""Which of the ONNX project's own node tests pass on this machine, which are refused and why.

    python scripts/benchmarks/conformance.py docs/conformance.md        some ten minutes on one core

`tests/lowering/test_conformance.py` runs them through passes, kernels and Program; this script listens to pytest and writes the
table that it makes of a run.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pytest

__all__ = ["Listener", "main", "spell"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]

TESTS: Final = "tests/lowering/test_conformance.py"

Facts = dict[str, Any]


class Listener:
    """A plugin of pytest that hears what the node tests record.

    Attributes:
        facts: Of each data set of each case.
        died: Cases that ended with an error instead of a result.
    """

    def __init__(self) -> None:
        """Starts with nothing."""
        self.facts: list[Facts] = []
        self.died: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes what a test that has ended told."""
        if report.when != "call":
            return
        told: Sequence[tuple[str, Any]] = report.user_properties
        self.facts += [facts for name, facts in told if name == "node"]
        if report.failed and not any(name == "node" and facts.get("problems") for name, facts in told):
            self.died.append(report.nodeid.rpartition("[")[2].rstrip("]"))


def main(words: Sequence[str] | None = None) -> int:
    """Runs the tests and writes the document.

    Args:
        words: Of the command line.

    Returns:
        0 where nothing failed, otherwise 1.
    """
    import pytest

    parser = argparse.ArgumentParser(description="Run ONNX's node tests and write down what passes.")
    parser.add_argument("document", type=Path, help="Markdown file to write")
    arguments = parser.parse_args(words)
    listener = Listener()
    pytest.main([str(REPOSITORY / TESTS), f"--rootdir={REPOSITORY}", "-q", "--nightly", "-k", "test_node"], plugins=[listener])
    arguments.document.write_text("\n".join(spell(listener.facts, listener.died)) + "\n")
    return int(bool(listener.died) or any(facts.get("problems") for facts in listener.facts))


def spell(facts: Sequence[Mapping[str, Any]], died: Sequence[str]) -> list[str]:
    """Makes the document of a run.

    Args:
        facts: Of each data set: operator and case, and what was wrong (`problems`), or with what message it was refused
            (`refused`) and in which thread TVM's limit is told (`thread`).
        died: Cases that ended with an error.

    Returns:
        Lines of Markdown.
    """
    by_operator: defaultdict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for each in facts:
        known = by_operator[each["operator"]]
        if not known.get(each["case"], {}).get("problems"):
            known[each["case"]] = each
    counts = {name: _count(cases.values()) for name, cases in sorted(by_operator.items())}
    passed, refused, failed = (sum(count[place] for count in counts.values()) for place in range(3))
    judged = [(case, found.get("problems")) for cases in by_operator.values() for case, found in cases.items()]
    wrong = [(case, "; ".join(problems)) for case, problems in judged if problems]
    wrong += [(case, "ended with an error") for case in died]
    lines = [
        "# ONNX's node tests",
        "",
        "Written by `python scripts/benchmarks/conformance.py docs/conformance.md`",
        f"with onnx {version('onnx')} and TVM {version('apache-tvm')}: every case of one operator on dense tensors of types that",
        "can be compiled, all inputs but the first constant, through passes, kernels and Program on this machine. A result in",
        "float32 has to lie within the running error bound.",
        "",
        f"{passed} pass, {refused} are refused with a message, {failed + len(died)} are wrong.",
        "",
        *_table(["operator", "pass", "refused", "wrong"], ([name, *count] for name, count in counts.items())),
        "",
        "## Wrong",
        "",
        *(_table(["case", "what"], wrong) if wrong else ["None."]),
        "",
        "## Refused",
        "",
        "What TVM's ONNX importer does not take, or passes over, so that it would compute something else. A thread is named",
        "where one tells of it.",
        "",
        *_table(["operator", "message", "cases", "thread"], _refusals(by_operator)),
    ]
    return lines


def _count(found: Iterable[Mapping[str, Any]]) -> tuple[int, int, int]:
    """How many cases passed, were refused, and were wrong."""
    kinds = ["refused" if "refused" in each else "wrong" if each["problems"] else "pass" for each in found]
    return kinds.count("pass"), kinds.count("refused"), kinds.count("wrong")


def _refusals(by_operator: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """A row for each message, without the names of nodes."""
    rows: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for operator, cases in sorted(by_operator.items()):
        for case, found in cases.items():
            if "refused" in found:
                message = re.sub(r"[Nn]ode '[^']*'", "the node", found["refused"]).replace("|", "/")
                rows[operator, message, found["thread"]].append(case.removeprefix("test_"))
    return [[operator, message, ", ".join(cases), thread or "none found"] for (operator, message, thread), cases in rows.items()]


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Spells a table in Markdown."""
    return ["| " + " | ".join(map(str, line)) + " |" for line in [header, ["---"] * len(header), *rows]]


if __name__ == "__main__":
    raise SystemExit(main())
