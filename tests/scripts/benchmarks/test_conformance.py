"""The document of a run of ONNX's node tests says what was told."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

TOLD = [
    {"operator": "Relu", "case": "test_relu", "problems": []},
    {"operator": "Pow", "case": "test_pow", "problems": []},
    {"operator": "Pow", "case": "test_pow_wrong", "problems": ["y differs"]},
    {"operator": "Pow", "case": "test_pow_types", "refused": "Node 'Pow_0': TVM does not take it", "thread": ""},
    {"operator": "Pow", "case": "test_pow_types_too", "refused": "Node 'Pow_7': TVM does not take it", "thread": ""},
    {"operator": "MaxPool", "case": "test_maxpool", "refused": "Missing outputs", "thread": "apache/tvm#14614"},
]


@pytest.fixture(scope="module")
def conformance(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("conformance")


def test_operators_are_counted(conformance: ModuleType) -> None:
    lines = conformance.spell(TOLD, ["test_abs_died"])
    assert {"| MaxPool | 0 | 1 | 0 |", "| Pow | 1 | 2 | 1 |", "| Relu | 1 | 0 | 0 |"} <= set(lines)
    assert "2 pass, 3 are refused with a message, 2 are wrong." in lines
    assert {"| test_pow_wrong | y differs |", "| test_abs_died | ended with an error |"} <= set(lines)


def test_refusals_of_one_reason_share_a_row(conformance: ModuleType) -> None:
    lines = conformance.spell(TOLD, [])
    assert "| Pow | the node: TVM does not take it | pow_types, pow_types_too | none found |" in lines
    assert "| MaxPool | Missing outputs | maxpool | apache/tvm#14614 |" in lines


def test_nothing_wrong_is_said(conformance: ModuleType) -> None:
    lines = conformance.spell(TOLD[:2], [])
    assert lines[lines.index("## Wrong") + 2] == "None."


def test_a_case_that_ended_with_an_error_is_wrong(conformance: ModuleType) -> None:
    listener = conformance.Listener()
    for failed, told in ((True, []), (True, [("node", {"problems": ["y differs"]})]), (False, [("node", {"problems": []})])):
        report = SimpleNamespace(when="call", failed=failed, user_properties=told, nodeid="test_conformance.py::test_node[test_abs]")
        listener.pytest_runtest_logreport(report)
    assert (len(listener.facts), listener.died) == (2, ["test_abs"])
