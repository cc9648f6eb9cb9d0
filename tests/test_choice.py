"""The worked example of docs/choice.md: its program prints what the page says, and the page's numbers are those of the formulas."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "choice.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_example_prints_what_the_page_says() -> None:
    done = subprocess.run([sys.executable, "-c", block("python")], capture_output=True, text=True, check=True)
    assert done.stdout == block("text")


def test_the_numbers_of_the_example_follow_from_the_facts() -> None:
    tile = 96 * (max(9 / 2, 6 / 2, 16.5 / 4, 5) + 7.5 / 4) + 2 * 9 + 12
    pointwise = 1046 * tile + 4 * 96 * 56 * 56 / 14 / 2 + 20
    rows, weights = 4 * 96 * 8 * 56, 4 * 96 * 24
    dense = 7 * (8 * 19 * tile + (rows + weights) / 25 / 2 + 20)
    boundary = 4 * 56 * 56 * (96 + 24) / 14
    assert [int(number) for number in re.findall(r"(\d+)$", block("text"), re.MULTILINE)] == [
        round(pointwise), round(dense), round(dense + boundary)
    ]  # fmt: skip
