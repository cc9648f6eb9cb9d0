"""The report as JUnit XML, as Jenkins and GitLab read it: a suite for each scope, a test case for each check.

A failed check is a `failure`. A skipped one is an `error`, never JUnit's `skipped`: CI systems pass over skipped test cases,
and here a check that could not be made means "not passed". Times are left out, so that equal results are equal files.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from sepwise.report.markup import clean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

    from sepwise.passes.equivalence import Check, Verification
    from sepwise.passes.equivalence.reproducer import Reproducer

__all__ = ["render"]


def render(verdict: Verification) -> bytes:
    """Writes the document.

    Args:
        verdict: What `sepwise verify` found.

    Returns:
        XML in UTF-8. It holds a failure or an error if and only if the verdict is "not passed".
    """
    subject = f"{verdict.model} on {verdict.target}" if verdict.against is None else f"{verdict.model} against {verdict.against}"
    root = ElementTree.Element("testsuites", name=clean(f"sepwise verify: {subject}"))
    scopes = dict.fromkeys(check.scope for check in verdict.checks)
    for scope in scopes:
        checks = [check for check in verdict.checks if check.scope == scope]
        suite = _suite(root, scope, checks)
        seen: Counter[str] = Counter()
        for check in checks:
            seen[check.name] += 1
            name = check.name if seen[check.name] == 1 else f"{check.name} ({seen[check.name]})"
            _case(suite, subject, check, name, _details(check, verdict.reproducer))
    if not verdict.checks:
        case = ElementTree.SubElement(
            ElementTree.SubElement(root, "testsuite", name="none", tests="1", failures="0", errors="1", skipped="0"),
            "testcase",
            name="any check",
            classname=clean(subject),
        )
        ElementTree.SubElement(case, "error", message="no check was made, so nothing is proven", type="skipped")
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _suite(root: Element, scope: str, checks: Sequence[Check]) -> Element:
    counts = Counter(check.status for check in checks)
    numbers = {"tests": len(checks), "failures": counts["failed"], "errors": counts["skipped"], "skipped": 0}
    return ElementTree.SubElement(root, "testsuite", {"name": scope} | {key: str(value) for key, value in numbers.items()})


def _case(suite: Element, subject: str, check: Check, name: str, details: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", name=clean(name), classname=clean(f"{subject}.{check.scope}"))
    if check.status == "failed":
        outcome = ElementTree.SubElement(case, "failure", message=clean(check.reason), type="failed")
        outcome.text = clean(details)
    elif check.status == "skipped":
        message = f"skipped, which counts as not passed: {check.reason}"
        outcome = ElementTree.SubElement(case, "error", message=clean(message), type="skipped")
        outcome.text = clean(details)
    else:
        ElementTree.SubElement(case, "system-out").text = clean(details)


def _details(check: Check, reproducer: Reproducer | None) -> str:
    """The numbers behind a check, one a line, as `sepwise verify --json` names them."""
    facts: list[tuple[str, object]] = [("scope", check.scope), ("nodes", ", ".join(check.nodes)), ("strategy", check.strategy)]
    if check.status != "skipped":
        facts += [("max_abs_error", check.max_abs_error), ("bound", check.bound), ("worst_ratio", check.worst_ratio)]
        facts += [("rms_error", check.rms_error), ("rms_bound", check.rms_bound)]
        facts += [("rms_ratio", check.rms_ratio), ("worst_error", check.worst_error)]
    if check.worst_index is not None:
        facts.append(("worst_index", f"{check.worst_tensor or ''}{list(check.worst_index)}"))
    facts += [("computed", check.computed), ("expected", check.expected), ("reproducer", check.reproducer)]
    if reproducer is not None and check.name in reproducer.checks:
        facts += [("finding", " ".join(reproducer.finding)), ("command", reproducer.command)]
    return "\n".join(f"{name}: {value}" for name, value in facts if value not in (None, ""))
