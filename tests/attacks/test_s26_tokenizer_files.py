"""Hostile tokenizer.json files: catastrophic patterns, and everything that is no tokenizer."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exllama.errors import ExllamaError, FormatError
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from exllama.tokenizer.from_folder import MAX_TOKENIZER, read_folder_tokenizer
from exllama.tokenizer.patterns import PatternError, check_pattern
from exllama.tokenizer.pretokenizers import PRE_TOKENIZERS
from tests.formats.limits import measured_refusal, refusal
from tests.tokenizer.test_folder_tokenizers import byte_level_backend, save
from tests.tokenizer.vocab_files import write_embedded

CATASTROPHIC = [
    "(a+)+b", "(a*)*b", "(a+)*b", "((a+)b?)*c", "(a|a)*b", "(a|ab)+c", "(?:a+)+b", "(?=(a+)+)b", "(a?){50}a{50}",
    "(a+){9}b", "(?:x*y*)*z", "(\\w+\\s?)*$", "([a-z]+)*", "(.*)*", "a*a*a*a*a*b", "(a{1,9}){99}", "(?i:(a+)+)",
    "((a{99}){99}){99}", "a{99999}", "a{2000}", "a{1,}{1,}{1,}{1,}{1,}", "(?>a+)*+b|(x+)+", "(a)\\1", "(?<n>a)\\k<n>",
    "\\g<0>", "(?P<x>a)", "(?(1)a|b)", "(?~a)", "(?{f})", "(*FAIL)", "a" * 9000, "(" * 40 + ")" * 40,
    "[" * 40 + "a" + "]" * 40, "(a", "a)", "[a",
]  # fmt: skip
HARMLESS = [
    r"\p{N}{1,3}", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\s+(?!\S)", "(?i:'s|'t|'re)", "[^(\\s|[.,!?\u2026\u3002])]+",
    "(A|B|C){1,4}Z", "<sentinel:[0-9]+>", r"\d{1,3}(?=(?:\d{3})*\b)", r"\s{512}(?!\S)", "[]a]+", r"[\]a]+", r"\{\}",
    "a{,3}", "x{y}", "(?i)abc", "[[:alpha:]]+", r"\x{1F600}", r"[^\n]+|[\n]+",
    "((?=[\\p{L}])([^a-z]))*((?=[\\p{L}])([^A-Z]))+",
    *sorted({pattern for kind in PRE_TOKENIZERS.values() for pattern in kind.patterns}),
]  # fmt: skip


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_s26_catastrophic_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    """S26: before they are compiled."""
    with pytest.raises(PatternError):
        check_pattern(pattern)
    path = with_pattern(tmp_path, json.dumps(pattern))
    error = refusal(lambda: read_folder_tokenizer(tmp_path, {}), path)
    assert isinstance(error, FormatError)
    assert error.field == "Regex"


@pytest.mark.parametrize("pattern", HARMLESS)
def test_s26_the_patterns_of_models_are_not(pattern: str) -> None:
    """S26: every pattern that we know from a published tokenizer passes."""
    check_pattern(pattern)


@pytest.mark.parametrize("key", ['"Regex"', '"\\u0052egex"', '"R\\u0065g\\u0065x"', '"Regex"  \n'])
def test_s26_escapes_do_not_hide_a_pattern(tmp_path: Path, key: str) -> None:
    """S26: JSON has several spellings of a key."""
    path = with_pattern(tmp_path, '"(a+)+b"', key)
    assert "exponential" in str(refusal(lambda: read_folder_tokenizer(tmp_path, {}), path))


def with_pattern(folder: Path, pattern: str, key: str = '"Regex"') -> Path:
    """A tokenizer whose pattern is replaced in the text of its file."""
    path = save(folder, byte_level_backend()) / "tokenizer.json"
    text, count = re.subn(r'"Regex":\s*"(?:[^"\\]|\\.)*"', lambda _: f"{key}: {pattern}", path.read_text("utf-8"))
    assert count == 1
    path.write_text(text, "utf-8")
    return path


def change(folder: Path, **parts: Any) -> Path:
    path = save(folder, byte_level_backend()) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | parts), "utf-8")
    return path


BROKEN: dict[str, Any] = {
    "a model that does not exist": {"model": {"type": "Mystery"}},
    "merges of unknown tokens": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}},
    "a vocabulary of texts": {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
    "negative ids": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "huge ids": {"model": {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}},
    "a pre-tokenizer that does not exist": {"pre_tokenizer": {"type": "Mystery"}},
    "a decoder that is a list": {"decoder": []},
    "added tokens that are numbers": {"added_tokens": [1, 2]},
    "a broken charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_s26_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    """S26: the library's exceptions and panics become errors that name the file."""
    path = change(tmp_path, **BROKEN[name])
    assert isinstance(refusal(lambda: read_folder_tokenizer(tmp_path, {}), path), ExllamaError)


NO_TOKENIZER = [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 10**6, b'{"a":' * 10**6, b"\0" * 10**6, b'{"version": "9"}']


@pytest.mark.parametrize("raw", NO_TOKENIZER, ids=range(len(NO_TOKENIZER)))
def test_s26_files_that_are_no_tokenizer(tmp_path: Path, raw: bytes) -> None:
    """S26: deep nesting included."""
    (tmp_path / "tokenizer.json").write_bytes(raw)
    refusal(lambda: read_folder_tokenizer(tmp_path, {}), tmp_path / "tokenizer.json")


def embedded_refusal(folder: Path, content: bytes) -> FormatError:
    """Of a GGUF file with that tokenizer.json inside; the error names its key."""
    path = write_embedded(folder / "m.gguf", content, 4000, 0, 1)
    with GgufCheckpoint(path) as checkpoint:
        error = measured_refusal(checkpoint.load_tokenizer, path)
    assert isinstance(error, FormatError)
    assert error.field.startswith("tokenizer.huggingface.json")
    return error


@pytest.mark.parametrize("pattern", ["(a+)+b", "((a{99}){99}){99}", "(?{f})"])
def test_s26_patterns_inside_gguf_files(tmp_path: Path, pattern: str) -> None:
    """S26: a tokenizer.json in the metadata of a GGUF file obeys the same rules."""
    content = with_pattern(tmp_path, json.dumps(pattern)).read_bytes()
    assert embedded_refusal(tmp_path, content).field.endswith("Regex")


@pytest.mark.parametrize("name", BROKEN)
def test_s26_broken_content_inside_gguf_files(tmp_path: Path, name: str) -> None:
    """S26: and breaks no less politely."""
    embedded_refusal(tmp_path, change(tmp_path, **BROKEN[name]).read_bytes())


@pytest.mark.parametrize("raw", NO_TOKENIZER, ids=range(len(NO_TOKENIZER)))
def test_s26_what_is_no_tokenizer_inside_gguf_files(tmp_path: Path, raw: bytes) -> None:
    """S26: empty, nested without end, not UTF-8."""
    embedded_refusal(tmp_path, raw)


def test_s26_an_embedded_tokenizer_of_another_type(tmp_path: Path) -> None:
    """S26: and one that is too large to be decoded."""
    assert "bytes of text" in str(embedded_refusal(tmp_path, b" " * (33 << 20)))


def test_s26_a_file_of_gigabytes(tmp_path: Path) -> None:
    """S26: is not read."""
    path = tmp_path / "tokenizer.json"
    with open(path, "wb") as file:
        file.truncate(100 * MAX_TOKENIZER)
    assert "at most" in str(refusal(lambda: read_folder_tokenizer(tmp_path, {}), path))


def test_s26_there_is_no_remote_code() -> None:
    """S26: no flag, and no import of a module that a model brings along."""
    root = Path(__file__).parents[2] / "exllama"
    for path in root.rglob("*.py"):
        text = path.read_text("utf-8")
        assert "trust_remote_code" not in text, path
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
        banned = {"exec", "eval", "compile", "run_path", "run_module", "spec_from_file_location"}
        assert not {call.rpartition(".")[2] for call in calls if not call.startswith(("re.", "self."))} & banned, path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_s26_any_change_of_a_byte_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """S26: nothing but our own errors comes out, and what loads can encode and decode."""
    original = tmp_path / "original.json"
    if not original.exists():
        text = json.dumps(json.loads((save(tmp_path, byte_level_backend()) / "tokenizer.json").read_text("utf-8")))
        original.write_text(text, "utf-8")
    raw = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 4000) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "tokenizer.json").write_bytes(raw)
    try:
        tokenizer = read_folder_tokenizer(tmp_path, {})
        tokenizer.decode(tokenizer.encode("Hello, world 123"))
    except ExllamaError:
        return
