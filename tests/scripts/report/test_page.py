"""The page as a browser's parser sees it."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

from sepwise.passes.equivalence import Check, Verification
from sepwise.report.markup import clean
from sepwise.report.page import SCOPES, render
from sepwise.report.provenance import Provenance

NAMES = ["passing", "failing", "skipping", "comparing", "bisected", "hostile", "nothing"]
VOID = {"br", "input", "link", "meta", "wbr"}
CONTRAST = 4.5
"""What the Web Content Accessibility Guidelines (2.1, level AA) ask of text."""


class Page(HTMLParser):
    """Elements with their attributes and text, and whether every one is closed where it has to be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.of: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        self.of.setdefault(tag, []).append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.of[tag][-1] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [found for name, found in self.elements if name == tag and all(found.get(key) == value for key, value in wanted)]


def read(verdict: Verification, provenance: Provenance) -> Page:
    return Page(render(verdict, provenance))


@pytest.mark.parametrize("name", NAMES)
def test_structure(name: str, verdicts: dict[str, Verification], provenance: Provenance) -> None:
    page = read(verdicts[name], provenance)
    identifiers = [found["id"] for _, found in page.elements if "id" in found]
    assert len(set(identifiers)) == len(identifiers)
    for _, found in page.elements:
        for key in ("aria-labelledby", "data-row"):
            assert found.get(key) is None or found[key] in identifiers
        href = found.get("href") or ""
        assert not href.startswith("#") or href[1:] in identifiers
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("html", lang="en")
    assert page.all("meta", name="viewport")
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("footer")) == 1


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_tables_can_be_read_aloud(name: str, verdicts: dict[str, Verification], provenance: Provenance) -> None:
    page = read(verdicts[name], provenance)
    for picture in page.all("svg"):
        assert picture.get("aria-hidden") == "true" or (picture["role"] == "img" and picture["aria-label"])
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(found.get("scope") in {"col", "row"} for found in page.all("th"))
    regions = [found["aria-label"] for _, found in page.elements if found.get("role") == "region"]
    assert len(set(regions)) == len(regions)
    assert all(found.get("tabindex") == "0" for _, found in page.elements if found.get("role") == "region")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched(name: str, verdicts: dict[str, Verification], provenance: Provenance) -> None:
    page = read(verdicts[name], provenance)
    for tag, found in page.elements:
        assert not {"src", "srcset", "style", "action", "data", "poster"} & set(found), tag
        assert not any(key.startswith("on") for key in found), tag
        assert (found.get("href") or "#").startswith(("#", "data:"))
    style, script = page.of["style"], page.of["script"]
    assert len(style) == len(script) == 1
    assert not re.search(r"url\(|@import|@font-face", style[0])
    assert not re.search(r"fetch|XMLHttpRequest|import|https?:", script[0])
    (policy,) = (found["content"] or "" for found in page.all("meta") if "http-equiv" in found)
    assert policy.startswith("default-src 'none'")
    for text in (*style, *script):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_hostile_names_stay_text(hostile: Verification, provenance: Provenance) -> None:
    text = clean(hostile.inputs[0])
    page = read(hostile, replace(provenance, command=text, target=text))
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert page.of["h1"] == [f"net {text} on host {text}"]
    assert any(text in shown for shown in page.of["code"])
    assert any(text in shown for shown in page.of["title"][1:]), "the tooltips of the plot"
    render(hostile, provenance).encode()


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_is_on_top(name: str, verdicts: dict[str, Verification], provenance: Provenance) -> None:
    page = read(verdicts[name], provenance)
    (header,) = page.of["header"]
    assert page.of["p"][0] == ("✓ Passed" if verdicts[name].passed else "✗ Not passed")
    assert page.of["p"][0] in header
    told = [*verdicts[name].inputs, *verdicts[name].kernel_inputs, *map(str, verdicts[name].agreement)]
    for text in (provenance.command, provenance.machine, "2026-01-02 03:04 UTC", "sepwise 1.2.3", *map(clean, told)):
        assert text in header
    assert (provenance.target in header) == (verdicts[name].against is None)


def rows(page: Page) -> list[str]:
    """The identifiers of the rows of the table of all checks, in the order of the page."""
    return [found["id"] or "" for found in page.all("tr") if "id" in found]


def test_what_did_not_pass_comes_first(failing: Verification, provenance: Provenance) -> None:
    page = read(failing, provenance)
    checks = [failing.checks[int(identifier.removeprefix("check-"))] for identifier in rows(page)]
    assert sorted(map(id, checks)) == sorted(map(id, failing.checks))
    assert [check.status for check in checks] == ["failed", "failed", "skipped", "passed", "passed", "passed", "passed"]
    cards = page.of["article"][:3]
    for card, check in zip(cards, checks, strict=False):
        assert check.name in card
        assert check.reason in card
        assert all(node in card for node in check.nodes)
    assert "out/k2.onnx" in cards[0]
    assert "1.54e+03" in cards[0]
    assert "nan" in cards[1]
    headings = page.of["h2"]
    assert headings[0] == "What did not pass"


def test_what_a_bisection_found(bisected: Verification, failing: Verification, provenance: Provenance) -> None:
    page = read(bisected, provenance)
    assert bisected.reproducer is not None
    card = page.of["article"][0]
    for text in (*bisected.reproducer.finding, "net.bisect", bisected.reproducer.command, "by these files alone"):
        assert text in card
    assert bisected.notes[0] in page.of["header"][0]
    unsure = replace(bisected, reproducer=replace(bisected.reproducer, reproduces=False))
    assert "only the whole model shows it" in read(unsure, provenance).of["article"][0]
    assert "Narrowed down" not in read(failing, provenance).of["h3"]


def test_many_failures_are_in_the_table(failing: Verification, provenance: Provenance) -> None:
    wrong = [check for check in failing.checks if check.status == "failed"]
    page = read(replace(failing, checks=tuple(wrong * 40)), provenance)
    assert len(rows(page)) == len(wrong) * 40
    cards = page.all("article", **{"class": "card failed"})
    assert 0 < len(cards) < len(wrong) * 40
    assert any(f"{len(wrong) * 40 - len(cards)} more such checks in the table" in text for text in page.of["p"])


def test_every_number_is_there(passing: Verification, provenance: Provenance) -> None:
    page = read(passing, provenance)
    (body,) = page.of["tbody"][-1:]
    for check in passing.checks:
        assert check.margin is not None
        for value in (check.max_abs_error, check.margin.error, check.margin.bound, check.worst_ratio):
            assert f"{value:.3g}" in body
        assert f"computed {check.computed:.9g}, right is {check.expected:.9g}" in body
        assert f"{check.worst_tensor}[{', '.join(map(str, check.worst_index or ()))}]" in body
    sortable = [found["data-value"] for found in page.all("td", **{"class": "ratio"})][-len(passing.checks) :]
    assert [float(value or "nan") for value in sortable] == [check.worst_ratio for check in passing.checks]


def test_error_and_bound_are_of_one_thing(passing: Verification, comparing: Verification, provenance: Provenance) -> None:
    """A kernel's largest error is not that of its worst element, and what decides of a graph is no element at all."""
    columns = 9
    cells = read(passing, provenance).of["td"][-columns * len(passing.checks) :]
    graph, kernel = (cells[place * columns : place * columns + columns - 1] for place in (0, 1))
    assert graph[-4:] == ["1e-07", "4e-07", "RMS", "5e-07"]
    assert kernel[-4:] == ["1e-06", "8e-06", "element", "7e-05"]
    tips = [text for text in read(passing, provenance).of["title"] if text.startswith("k0_depthwise")]
    assert "element: 1e-06, allowed 8e-06" in tips[0]
    (card,) = (text for text in read(comparing, provenance).of["article"] if "RMS error 7" in text)
    assert "Error and bound (RMS)2.8e-06, allowed 4e-07" in card


def test_the_plot_has_a_mark_for_each_kernel(failing: Verification, provenance: Provenance) -> None:
    page = read(failing, provenance)
    kernels = [f"check-{index}" for index, check in enumerate(failing.checks) if check.scope == "kernel"]
    assert [found["data-row"] for found in page.all("g")] == kernels
    (label,) = (found["aria-label"] or "" for found in page.all("svg", **{"class": "ratios"}))
    assert "5 kernels" in label
    assert "k3_dense with ∞" in label
    tips = [text for text in page.of["title"] if text.startswith("k2_pointwise")]
    assert "failed, pointwise\nnodes: pw\nerror / tolerance 1.54e+03" in tips[0]


def test_histograms_say_in_words_what_they_show(failing: Verification, provenance: Provenance) -> None:
    page = read(failing, provenance)
    captions = page.of["figcaption"]
    counts = [sum(column) for column in zip(*(c.histogram for c in failing.checks if c.scope == "kernel" and c.histogram), strict=True)]
    assert any(f"{sum(counts):,} elements: {counts[0] / sum(counts):.1%} exact, 3 above the tolerance." in text for text in captions)
    assert any("all within 1/2 of the tolerance" in text for text in captions)
    assert len(page.all("svg", **{"class": "bars"})) == 3


def test_passes_with_what_they_refused(passing: Verification, comparing: Verification, provenance: Provenance) -> None:
    page = read(passing, provenance)
    (body,) = (text for text in page.of["tbody"] if "fold_pad" in text)
    assert "changed nothing" in body
    assert "2 nodes" in body
    assert "the Conv has a second consumer: bn7, bn9" in body
    assert "What the passes did" not in read(comparing, provenance).of["h2"]


def test_names_break_behind_their_parts_only(passing: Verification, provenance: Provenance) -> None:
    """Where a word may break anywhere, a column of a table is as narrow as a letter."""
    check = replace(passing.checks[1], nodes=("blocks.1/conv",))
    page = render(replace(passing, checks=(check,)), provenance)
    assert "<code>fold_<wbr>batch_<wbr>norm</code>" in page
    assert "blocks.<wbr>1/<wbr>conv" in page
    style = (files("sepwise.report") / "page.css").read_text()
    assert "table code { overflow-wrap: break-word; }" in style


def test_what_scrolls_shows_it(passing: Verification, provenance: Provenance) -> None:
    page = read(passing, provenance)
    assert len(page.all("div", role="region")) == len(page.all("div", **{"class": "scrolling"})) == 4
    (rule,) = re.findall(r"^\.scrolling \{(.*?)\}", page.of["style"][0], re.DOTALL | re.MULTILINE)
    assert [rule.count(word) for word in ("var(--page)", " local", "var(--shade)", " scroll")] == [2, 2, 2, 2]


def test_two_files(comparing: Verification, provenance: Provenance) -> None:
    page = read(comparing, replace(provenance, target=None))
    assert page.of["h1"] == ["net against fused"]
    assert not page.all("svg", **{"class": "ratios"})
    assert "RMS error 7" in page.of["article"][0]


@pytest.mark.parametrize("scope", SCOPES)
def test_each_scope_names_the_section_that_derives_its_tolerance(scope: str, failing: Verification, provenance: Provenance) -> None:
    section, sentence = SCOPES[scope]
    cards = [text for text in read(failing, provenance).of["article"] if text.startswith(scope.capitalize())]
    assert len(cards) == 1
    assert f'docs/verification.md, section "{section}"' in cards[0]
    assert sentence in cards[0]


def test_the_sections_exist(repository: Path) -> None:
    headings = re.findall(r"^## (.*)$", (repository / "docs" / "verification.md").read_text(), re.MULTILINE)
    assert {section for section, _ in SCOPES.values()} <= set(headings)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_in_every_mode() -> None:
    style = (files("sepwise.report") / "page.css").read_text()
    palettes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(palettes) == 3, "light, dark, print"
    for palette in palettes:
        for text in ("ink", "quiet", "link", "passed", "failed", "skipped"):
            for ground in ("page", "raised"):
                light, dark = sorted((luminance(palette[text]), luminance(palette[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= CONTRAST, (text, ground)


def test_no_check_is_lost_without_the_script(passing: Verification, provenance: Provenance) -> None:
    page = read(passing, provenance)
    assert page.all("p", **{"class": "filter"})[0].keys() >= {"hidden"}
    assert not page.all("button"), "the script makes what only it can serve"
    assert len(rows(page)) == len(passing.checks)


def test_checks_of_one_name_have_rows_of_their_own(passing: Verification, provenance: Provenance) -> None:
    again: tuple[Check, ...] = tuple(replace(check) for check in passing.checks)
    page = read(replace(passing, checks=(*passing.checks, *again)), provenance)
    assert len(set(rows(page))) == 2 * len(again)
