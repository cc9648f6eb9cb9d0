import re
from itertools import combinations, pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.report.plot import Point, histogram, meter, power_of_two, ratio_plot

RATIOS = st.floats(1e-30, 1e30)


def point(number: int, ratio: float | None, status: str = "passed") -> Point:
    return Point(number, f"kernel_{number}", ratio, status, f"title {number}", f"check-{number}")


def draw(points: list[Point]) -> Element:
    return ElementTree.fromstring(ratio_plot(points, axis="axis", label="label"))


def marks(svg: Element) -> dict[str, tuple[float, float]]:
    """Where the middle of each check's mark is."""
    places = {}
    for group in svg.iter("g"):
        shape = group[1]
        if shape.tag == "circle":
            place = float(shape.get("cx", "nan")), float(shape.get("cy", "nan"))
        else:
            x, y = map(float, re.findall(r"-?[\d.]+", shape.get("d", ""))[:2])
            place = (x, y + 7) if group.get("class") == "mark failed" else (x + 5, y + 5)
        places[group.get("data-row", "")] = place
    return places


def limit(svg: Element) -> float:
    (line,) = (line for line in svg.iter("line") if line.get("class") == "limit")
    return float(line.get("y1", "nan"))


@given(ratios=st.lists(RATIOS, min_size=1, max_size=20))
def test_marks_are_on_their_side_of_the_limit_and_in_order(ratios: list[float]) -> None:
    svg = draw([point(i, ratio, "failed" if ratio > 1 else "passed") for i, ratio in enumerate(ratios)])
    places = [marks(svg)[f"check-{i}"] for i in range(len(ratios))]
    line = limit(svg)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for (x, y), ratio in zip(places, ratios, strict=True):
        assert 0 < x < width
        assert 0 < y < height
        assert y <= line + 0.1 if ratio > 1 else y >= line - 0.1
    by_ratio = sorted(zip(ratios, places, strict=True))
    assert all(low[1][1] >= high[1][1] - 0.2 for low, high in pairwise(by_ratio))
    assert [x for x, _ in places] == sorted(x for x, _ in places)


def test_what_has_no_place_on_the_scale() -> None:
    svg = draw([point(0, 0.5), point(1, 0.0), point(2, None, "failed"), point(3, None, "skipped"), point(4, 1e9, "failed")])
    y = {row: place[1] for row, place in marks(svg).items()}
    assert y["check-1"] > y["check-0"] > limit(svg) > y["check-4"] > y["check-2"]
    assert y["check-3"] == pytest.approx(y["check-2"], abs=0.2)
    texts = [text.text for text in svg.iter("text")]
    assert {"exact", "no ratio", "tolerance"} <= set(texts)
    assert "exact" not in [text.text for text in draw([point(0, 0.5)]).iter("text")]


def test_every_mark_tells_its_status_by_shape_and_has_a_title() -> None:
    svg = draw([point(0, 0.5), point(1, 7.0, "failed"), point(2, None, "skipped")])
    groups = list(svg.iter("g"))
    assert [group.findtext("title") for group in groups] == ["title 0", "title 1", "title 2"]
    shapes = {group[1].tag + re.sub(r"[-\d. ]", "", group[1].get("d", "")) for group in groups}
    assert len(shapes) == 3
    assert (svg.get("role"), svg.get("aria-label")) == ("img", "label")


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
def test_labels_do_not_cover_each_other(count: int) -> None:
    svg = draw([point(i, 1e3 * (1 + i % 3), "failed") for i in range(count)])
    labels = [text for text in svg.iter("text") if text.get("class") == "point-label"]
    assert labels
    boxes = []
    for label in labels:
        width = len(label.text or "") * 7
        x, y = float(label.get("x", "nan")), float(label.get("y", "nan"))
        boxes.append((x, x + width, y) if label.get("text-anchor") == "start" else (x - width, x, y))
    for one, other in combinations(boxes, 2):
        assert abs(one[2] - other[2]) >= 15 or one[1] <= other[0] or other[1] <= one[0]
    numbers = [text for text in svg.iter("text") if (text.text or "").isdigit() and text.get("text-anchor") == "middle"]
    assert len(numbers) <= 17


@pytest.mark.parametrize(("ratio", "status"), [(1e-9, "passed"), (0.0, "passed"), (None, "failed"), (1e9, "failed"), (None, "skipped")])
def test_a_meter_stays_in_its_frame(ratio: float | None, status: str) -> None:
    svg = ElementTree.fromstring(meter(ratio, status))
    _, _, width, _ = map(float, svg.get("viewBox", "").split())
    filled = float(next(bar for bar in svg.iter("rect") if "fill" in bar.get("class", "")).get("width", "nan"))
    mark = float(next(svg.iter("line")).get("x1", "nan"))
    assert 0 <= filled <= width
    assert (filled > mark) == (status == "failed")
    assert svg.get("aria-hidden") == "true"


@given(counts=st.lists(st.integers(0, 10**9), min_size=28, max_size=28), judged=st.booleans())
def test_histogram_bars(counts: list[int], judged: bool) -> None:
    svg = ElementTree.fromstring(histogram(counts, -20, axis="axis", label="label", judged=judged))
    bars = [bar for bar in svg.iter("rect") if bar.get("class", "").startswith("bar")]
    shown = [count for count in counts if count]
    assert [bar.findtext("title", "").rpartition(": ")[2] for bar in bars] == [f"{count:,} elements" for count in shown]
    heights = [float(bar.get("height", "nan")) for bar in bars]
    assert all(height > 0 for height in heights)
    ordered = sorted(zip(shown, heights, strict=True))
    assert all(low[1] <= high[1] + 0.1 for low, high in pairwise(ordered))
    (line,) = (line for line in svg.iter("line") if line.get("class") == "limit")
    at = float(line.get("x1", "nan"))
    beyond = [bar for bar in bars if float(bar.get("x", "nan")) >= at]
    assert len(beyond) == sum(count > 0 for count in counts[22:]), "the last bin within the tolerance ends at 2^0"
    assert {bar.get("class") for bar in beyond} <= ({"bar beyond"} if judged else {"bar"})
    assert {bar.get("class") for bar in bars if bar not in beyond} <= {"bar"}


def test_bins_name_their_edges() -> None:
    svg = ElementTree.fromstring(histogram([1] * 28, -20, axis="axis", label="label", judged=True))
    titles = [bar.findtext("title", "").rpartition(": ")[0] for bar in svg.iter("rect")]
    assert titles[:3] == ["exact", "up to 2⁻²⁰", "above 2⁻²⁰, up to 2⁻¹⁹"]
    assert titles[21:23] == ["above 1/2, up to 1", "above 1, up to 2"]
    assert titles[-1] == "above 32"


@pytest.mark.parametrize(("octave", "text"), [(-20, "2⁻²⁰"), (-3, "1/8"), (-1, "1/2"), (0, "1"), (5, "32")])
def test_powers_of_two(octave: int, text: str) -> None:
    assert power_of_two(octave) == text
