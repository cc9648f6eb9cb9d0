from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepwise.report.markup import Markup, clean, element, join


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(text=st.text(st.characters(codec=None)))
def test_any_text_survives_as_text(text: str) -> None:
    reader = Reader()
    reader.feed(element("td", text, title=text))
    reader.close()
    assert reader.tags == [("td", {"title": clean(text)})]
    assert reader.text == clean(text)
    clean(text).encode()  # no lone surrogates


@pytest.mark.parametrize("text", ["a\x00b", "a\x08b", "a\x1fb", "a\ud800b", "a\ufffeb"])
def test_what_no_document_can_hold_is_replaced(text: str) -> None:
    assert clean(text) == "a\ufffdb"


def test_what_documents_can_hold_is_kept() -> None:
    text = "tab\tline\nÄ 中 𝄞 \x7f"
    assert clean(text) == text


def test_attributes() -> None:
    assert element("p", class_="a", data_value=3, hidden=True, title=None, open=False) == '<p class="a" data-value="3" hidden></p>'
    assert element("br") == "<br>"


def test_markup_is_not_escaped_twice() -> None:
    inner = element("b", "a < b")
    assert inner == "<b>a &lt; b</b>"
    assert element("p", inner, None, [" & ", 1]) == "<p><b>a &lt; b</b> &amp; 1</p>"
    assert isinstance(join(inner), Markup)
