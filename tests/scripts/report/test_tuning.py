"""The page of a tuning."""

from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from sepwise.lowering.selection import Pick
from sepwise.lowering.tuning.result import KernelResult, Tuning
from sepwise.lowering.tuning.search import Wrong
from sepwise.report.provenance import Provenance
from sepwise.report.tuning import render_tuning

KERNEL = KernelResult("k<0>", 2, "conv/a", "dense rows=1", "dense rows=2", True, 200.0, 150.0, 0.75, 0.74, 0.76, 380, 24, True)
TUNING = Tuning(
    "net", "host", "measured", "a cpu", "predicted", "native", "us", 1, "db", 43, 3, 12.5, 260.0, 210.0, 0.81, 0.8, 0.82,
    (KERNEL,), (), (), ((0, 260.0), (8, 210.0)), (),
)  # fmt: skip
MADE = Provenance("sepwise tune net", "host (a cpu, native)", datetime(2026, 11, 22, tzinfo=UTC), {"sepwise": "1.0"}, "Linux")


def parse(tuning: Tuning) -> ElementTree.Element:
    """Reads the page: all but void elements of HTML is XML too."""
    page = render_tuning(tuning, MADE).removeprefix("<!DOCTYPE html>\n")
    for void in ("meta", "link"):
        page = page.replace(f"<{void} ", f"<{void}_ ")
    head, body = page.split("</head>")
    return ElementTree.fromstring(f"<html>{body.removesuffix('</html>').strip().removesuffix('</html>')}</html>" if head else "")


def texts(tuning: Tuning) -> str:
    return " ".join(parse(tuning).itertext())


def test_it_says_how_much_and_how_surely() -> None:
    assert "takes 0.810 of the time that it took, surely between 0.800 and 0.820" in texts(TUNING)


def test_an_estimate_is_called_one() -> None:
    told = texts(replace(TUNING, method="estimated", runner="emulated", unit="cycles", target="cortex-a72"))
    assert "estimated, not measured" in told
    assert "surely" not in told


def test_names_cannot_become_markup() -> None:
    assert "k<0>" in texts(TUNING)


def test_bars_have_the_lengths_of_the_times() -> None:
    bars = [bar for bar in parse(TUNING).iter("rect") if "bar" in bar.get("class", "")]
    before, after = (float(bar.get("width", "0")) for bar in bars)
    assert after / before == pytest.approx(150 / 200, rel=1e-3)


@pytest.mark.parametrize("history", [(), ((0, 260.0),)])
def test_without_trials_there_is_no_course(history: tuple[tuple[int, float], ...]) -> None:
    page = parse(replace(TUNING, history=history, default_time=None, tuned_time=None, low=None, high=None, kernels=()))
    assert not list(page.iter("svg"))
    assert "Nothing was left to try." in " ".join(page.itertext())


def test_the_processor_is_named() -> None:
    assert "a cpu" in texts(TUNING)
    assert "not told" in texts(replace(TUNING, machine=None))


def test_chains_have_a_table_of_their_own() -> None:
    chain = replace(KERNEL, name="k<0>", workload="chain/a", chosen="structure kernel0=2", space=2, tried=1)
    tables = list(parse(replace(TUNING, structures=(chain,))).iter("table"))
    assert ["structure kernel0=2" in " ".join(table.itertext()) for table in tables] == [False, True]
    assert len(list(parse(TUNING).iter("table"))) == 1


def test_without_a_play_off_nothing_is_sure() -> None:
    assert "There was no time for a play-off." in texts(replace(TUNING, low=None, high=None))


def test_what_was_refused_is_listed() -> None:
    assert "off by 7" in texts(replace(TUNING, wrong=(Wrong("k", Pick("planted", ()), "off by 7"),)))
