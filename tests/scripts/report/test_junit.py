"""The document against the elements and attributes that Jenkins (its junit-10.xsd) and GitLab read."""

from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from sepwise.passes.equivalence import Verification
from sepwise.report.junit import render

ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "disabled", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "disabled", "time", "timestamp", "hostname", "id", "package"},
    "testcase": {"name", "classname", "assertions", "time", "status"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "system-out": set(),
}
REQUIRED = {"testsuite": {"name", "tests", "failures", "errors"}, "testcase": {"name", "classname"}}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out", "system-err"},
    "testcase": {"skipped", "error", "failure", "system-out", "system-err"},
}

NAMES = ["passing", "failing", "skipping", "comparing", "bisected", "hostile", "nothing"]


def read(verdict: Verification) -> Element:
    return ElementTree.fromstring(render(verdict))


def outcome(case: Element) -> str:
    return next((child.tag for child in case if child.tag in {"failure", "error"}), "passed")


@pytest.mark.parametrize("name", NAMES)
def test_structure(name: str, verdicts: dict[str, Verification]) -> None:
    root = read(verdicts[name])
    assert root.tag == "testsuites"
    for parent in root.iter():
        assert set(parent.keys()) <= ATTRIBUTES[parent.tag]
        assert set(parent.keys()) >= REQUIRED.get(parent.tag, set())
        assert {child.tag for child in parent} <= CHILDREN.get(parent.tag, set())
        assert all(parent.get(key) for key in parent.keys())
        assert "time" not in parent.keys()
    for suite in root:
        outcomes = [outcome(case) for case in suite]
        assert int(suite.get("tests", "")) == len(outcomes) > 0
        assert int(suite.get("failures", "")) == outcomes.count("failure")
        assert int(suite.get("errors", "")) == outcomes.count("error")
    for count in ("tests", "failures", "errors"):
        assert int(root.get(count, "")) == sum(int(suite.get(count, "")) for suite in root)


@pytest.mark.parametrize("name", NAMES)
def test_green_if_and_only_if_passed(name: str, verdicts: dict[str, Verification]) -> None:
    outcomes = {outcome(case) for case in read(verdicts[name]).iter("testcase")}
    assert (outcomes == {"passed"}) == verdicts[name].passed


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_for_each_scope_and_a_case_for_each_check(name: str, verdicts: dict[str, Verification]) -> None:
    checks = verdicts[name].checks
    if not checks:
        return
    root = read(verdicts[name])
    assert [suite.get("name") for suite in root] == list(dict.fromkeys(check.scope for check in checks))
    assert len(list(root.iter("testcase"))) == len(checks)
    expected = {"passed": "passed", "failed": "failure", "skipped": "error"}
    for suite in root:
        wanted = [expected[check.status] for check in checks if check.scope == suite.get("name")]
        assert [outcome(case) for case in suite] == wanted


def test_a_failure_says_what_and_where(failing: Verification) -> None:
    (case,) = (case for case in read(failing).iter("testcase") if case.get("name") == "k2_pointwise")
    assert case.get("classname") == "net on host.kernel"
    assert case[0].get("message") == "off by 0.0123 at [0, 3, 1, 2], where 8e-06 is allowed"
    details = case[0].text or ""
    numbers = ("worst_ratio: 1536.0", "worst_error: 0.012288", "worst_index: a[0, 3, 1, 2]")
    for line in ("nodes: pw", "strategy: pointwise", *numbers, "reproducer: out/k2.onnx"):
        assert line in details.splitlines()


def test_what_a_bisection_found_is_with_its_failure(bisected: Verification) -> None:
    assert bisected.reproducer is not None
    for case in read(bisected).iter("testcase"):
        details = "".join(case.itertext())
        assert (f"command: {bisected.reproducer.command}" in details) == (case.get("name") == "k2_pointwise")


def test_a_skipped_check_is_an_error_that_explains_itself(skipping: Verification) -> None:
    (error,) = read(skipping).iter("error")
    assert error.get("message") == "skipped, which counts as not passed: Loop 'loop': how it rounds is not known"


def test_two_checks_of_one_name_are_told_apart(passing: Verification) -> None:
    twice = replace(passing, checks=(*passing.checks, passing.checks[-1]))
    names = [(case.get("classname"), case.get("name")) for case in read(twice).iter("testcase")]
    assert len(set(names)) == len(twice.checks)


def test_equal_results_are_equal_files(passing: Verification) -> None:
    assert render(passing) == render(passing)
    assert render(passing).startswith(b"<?xml version='1.0' encoding='utf-8'?>\n")
