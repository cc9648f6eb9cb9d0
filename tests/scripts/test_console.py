import json
import math
import os
import subprocess
import sys

import pytest

from sepwise.console import number, print_json, print_table, reserved_stdout, say


def test_say_is_one_line_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    say("one\n  two")
    assert capfd.readouterr() == ("", "sepwise: one two\n")


def test_reserved_stdout_catches_native_code_and_children(capfd: pytest.CaptureFixture[str]) -> None:
    with reserved_stdout():
        os.write(1, b"native ")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    os.write(1, b"result")
    assert capfd.readouterr() == ("result", "native child\n")


def test_json_has_no_infinities(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (1, 2)}})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [1.5, None], "c": {"d": [1, 2]}}


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (1234567, "1,234,567"), (0.01234, "0.0123"), (1234.6, "1,235"), (0.0, "0"), (99.96, "100"), (-1e8, "-100,000,000"), (2.279e40, "2.28e+40"), (math.inf, "inf")]
)
def test_number(value: object, text: str) -> None:
    assert number(value) == text


def test_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ["name", "count"], [["conv[0]", "1"]])
    assert "conv[0]" in capsys.readouterr().out
