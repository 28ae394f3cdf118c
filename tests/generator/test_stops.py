"""Stop strings across token boundaries, and tokens that stay in step with their text."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exllama.errors import UsageError
from exllama.generator import Finished, Job, Text
from exllama.generator.answer import Answer
from exllama.generator.stops import StopStrings
from exllama.tokenizer.detokenizer import IncrementalDetokenizer
from tests.generator.fake_model import make


def feed(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """Shown text and the stop that was found, piece by piece."""
    matcher, shown = StopStrings(stops), ""
    for piece in pieces:
        text, stop = matcher.add(piece)
        shown += text
        if stop is not None:
            return shown, stop
        whole = "".join(pieces)
        assert whole.startswith(shown)
    return shown + matcher.flush(), None


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stop"),
    [
        (["STOP"], ["abSTOPcd"], "ab", "STOP"),
        (["STOP"], ["ab", "S", "T", "O", "P", "x"], "ab", "STOP"),
        (["STOP"], ["abSTO", "xy"], "abSTOxy", None),
        (["STOP"], ["SSTOP"], "S", "STOP"),
        (["aab"], ["a", "a", "a", "b"], "a", "aab"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb", "\n\n"),
        (["bcd", "cd"], ["ab", "cd"], "a", "bcd"),
        (["abcd", "bc"], ["ab", "c", "d"], "a", "bc"),  # "bc" is complete before "abcd" can be
        (["ab", "abc"], ["abc"], "", "ab"),
        (["x"], [], "", None),
    ],
)
def test_cases(stops: list[str], pieces: list[str], shown: str, stop: str | None) -> None:
    assert feed(stops, pieces) == (shown, stop)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=3), max_size=12),
)
def test_cut_pieces_show_what_whole_text_would(stops: list[str], pieces: list[str]) -> None:
    """The stop that is complete first ends the text; the oracle looks at every prefix of the whole text."""
    shown, stop = feed(stops, pieces)
    whole, end = "", None
    for piece in pieces:
        whole += piece
        found = [(whole.index(s), len(s)) for s in stops if s in whole]
        if found:
            end = min(found)[0]
            break
    assert shown == whole[:end]
    assert (stop is None) == (end is None)


@given(st.text("abS", max_size=8))
def test_nothing_is_held_back_without_need(text: str) -> None:
    matcher = StopStrings(["SaSb"])
    shown = matcher.add(text)[0]
    if "SaSb" not in text:
        assert matcher.held == text[len(shown) :]
        longest = next((n for n in (3, 2, 1) if text.endswith("SaSb"[:n])), 0)
        assert len(matcher.held) == longest


class Bytes:
    """A tokenizer of single bytes."""

    control_ids: ClassVar[frozenset[int]] = frozenset([256])

    def id_to_piece(self, token_id: int) -> bytes:
        return bytes([token_id])


def answer(*stops: str) -> Answer:
    return Answer(IncrementalDetokenizer(Bytes()), stops)  # type: ignore[arg-type]


@given(st.text(st.sampled_from("aé€😀S"), max_size=10), st.booleans())
def test_streamed_tokens_decode_to_streamed_text(text: str, hidden: bool) -> None:
    made, shown, tokens = answer("SS"), "", []
    for token in [*text.encode(), *([256] if hidden else [])]:
        piece, ids = made.add(token)
        shown, tokens = shown + piece, tokens + list(ids)
        assert bytes(t for t in tokens if t < 256).decode(errors="ignore").startswith(shown)
        if made.stop:
            break
    else:
        piece, ids = made.finish()
        shown, tokens = shown + piece, tokens + list(ids)
    assert shown == made.text == text.split("SS")[0]
    assert bytes(t for t in tokens if t < 256).decode() == shown
    if "SS" not in text and hidden:
        assert tokens[-1] == 256


def test_an_unfinished_character_comes_out_as_a_replacement() -> None:
    made = answer()
    assert made.add(0xE2) == ("", ())
    assert made.finish() == ("\ufffd", (0xE2,))


def test_tokens_of_a_stop_string_are_not_told() -> None:
    made = answer("bcd")
    assert made.add(ord("a")) == ("a", (ord("a"),))
    assert made.add(ord("b")) == made.add(ord("c")) == ("", ())
    assert made.add(ord("d")) == ("", ())
    assert (made.stop, made.text) == ("bcd", "a")


def test_a_token_that_begins_where_the_shown_text_ends_waits() -> None:
    made, (b, c, d) = answer("bcd"), b"bcd"
    assert made.add(b) == ("", ())
    assert made.add(b) == ("b", (b,))
    assert made.add(c) == made.add(d) == ("", ())
    assert (made.stop, made.text) == ("bcd", "b")


def test_stops_end_jobs_at_the_right_place() -> None:
    generator, _ = make()
    whole = generator.generate("hello", max_new_tokens=200)
    stop = whole[50:53]
    job = Job("hello", max_new_tokens=200, stop=[stop, "never there"])
    events = [event for event in drive(generator, job) if isinstance(event, Text)]
    assert job.text == whole[: whole.index(stop)] == "".join(event.text for event in events)
    assert [t for event in events for t in event.token_ids] == list(job.text.encode())
    assert (job.finished.reason, job.finished.stop) == ("stop_string", stop)
    assert job.finished.new_tokens == whole.index(stop) + 3
    token = ord(whole[70])
    job = Job("hello", max_new_tokens=200, stop=[token])
    drive(generator, job)
    assert job.text == whole[: whole.index(chr(token))]
    assert (job.finished.reason, job.finished.stop) == ("stop_token", token)
    generator.check_integrity()


def test_every_end_token_counts() -> None:
    generator, _ = make(ends=True)
    seen = set()
    for i in range(60):
        job = Job(f"prompt {i}", max_new_tokens=None)
        drive(generator, job)
        assert job.finished.reason == "stop_token"
        assert not set(job.text.encode()) & {0, 1, 2}
        seen.add(job.finished.stop)
    assert seen == {0, 1, 2}


def drive(generator, job):  # type: ignore[no-untyped-def]
    generator.enqueue(job)
    events = []
    while generator.active:
        events += generator.step()
    assert isinstance(events[-1], Finished)
    return events


@pytest.mark.parametrize("stop", [[""], [True], [1.5], [None], ["x"] * 65])
def test_meaningless_stops_are_refused(stop: list) -> None:
    with pytest.raises(UsageError, match="stop"):
        Job("x", stop=stop)


def test_a_single_stop_needs_no_list() -> None:
    assert Job("x", stop="ab").stop == ("ab",)
