"""Text on its way to a terminal: nothing dangerous passes, nothing harmless is lost, chunking changes nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exllama.cli.chat.markdown import MarkdownStream, Span
from exllama.cli.chat.terminal import LONGEST_SEQUENCE, TerminalGuard, clean, is_control


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("a\x1b[31mred\x1b[0mb", "aredb"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://e\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\x", "x"),
        ("\x9b2Jx", "x"),
        ("\x1b(Bx", "x"),
        ("\x1bcx", "x"),
        ("safe\rfake", "safefake"),
        ("a\x00\x07\x08\x7f\u202eb\tc\nd", "ab\tc\nd"),
        ("\x1b]0;never ends\nnext line", "\nnext line"),
        ("naïve ☕ 漢字 👩‍🚀", "naïve ☕ 漢字 👩‍🚀"),
        ("\x1b]0;" + "x" * (LONGEST_SEQUENCE + 20) + "end", "x" * 22 + "end"),
    ],
)
def test_escape_sequences_are_taken_out(hostile: str, harmless: str) -> None:
    found = clean(hostile)
    assert found == harmless
    assert not any(is_control(character) for character in found if character not in "\n\t")


@given(st.text(alphabet="a\x1b[]0;m\x07\\\n\x9b", max_size=40), st.integers(0, 40))
def test_a_cut_between_chunks_changes_nothing(text: str, cut: int) -> None:
    guard = TerminalGuard()
    assert guard.feed(text[:cut]) + guard.feed(text[cut:]) == clean(text)


@given(st.text())
def test_text_without_controls_is_kept(text: str) -> None:
    kept = "".join(character for character in text if character in "\n\t" or not is_control(character))
    assert clean(kept) == kept


def styled(*chunks: str) -> list[tuple[str, str]]:
    """(character, style) of everything that comes out."""
    stream = MarkdownStream()
    spans: list[Span] = []
    for chunk in chunks:
        spans += stream.feed(chunk)
    spans += stream.flush()
    return [(character, span.style) for span in spans for character in span.text]


def styles(text: str) -> dict[str, str]:
    """Style per word."""
    found: dict[str, str] = {}
    word, style = "", ""
    for character, name in [*styled(text), (" ", "")]:
        if character.isalnum():
            word, style = word + character, name
        elif word:
            found[word], word = style, ""
    return found


def test_markdown_styles() -> None:
    text = (
        "# Title here\nplain **bold** and *italic* ***both*** `code` snake_case 2 * 3 * 4\n"
        "- item\n12. numbered\n> quoted\n```python\nx = **kwargs\n# comment\n```\nafter ``a `tick` b``\n"
    )
    found = styles(text)
    assert found["Title"] == found["here"] == "heading"
    assert (found["plain"], found["bold"], found["and"], found["italic"]) == ("", "bold", "", "italic")
    assert (found["both"], found["code"], found["case"], found["3"]) == ("bold italic", "code", "", "")
    assert (found["item"], found["12"], found["numbered"], found["quoted"]) == ("", "bullet", "", "quote")
    assert (found["python"], found["kwargs"], found["comment"], found["after"]) == ("fence", "code", "code", "")
    assert found["tick"] == "code"


MARKDOWN = st.text(alphabet=st.sampled_from(list("ab *`#->1.~\n\\_")), max_size=60)


@given(MARKDOWN, st.lists(st.integers(0, 60), max_size=5))
def test_markdown_keeps_every_character_and_chunking_changes_nothing(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    whole = styled(text)
    assert "".join(character for character, _ in whole) == text
    assert styled(*chunks) == whole


def test_plain_words_are_shown_at_once() -> None:
    stream = MarkdownStream()
    assert stream.feed("Hello") == [Span("Hello", "")]
    assert stream.feed(" wor") == [Span(" wor", "")]
    assert stream.feed("**") == []
    assert stream.feed("b") == [Span("**", "bold"), Span("b", "bold")]
