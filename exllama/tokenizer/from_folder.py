"""Tokenizers of Hugging Face folders: tokenizer.json, and the settings that lie beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from exllama.errors import FormatError, SourceError, UnsupportedModelError
from exllama.formats.bounded_json import read_object
from exllama.tokenizer.chat_template import MAX_TEMPLATE, ChatTemplate
from exllama.tokenizer.patterns import PatternError, check_pattern
from exllama.tokenizer.pieces import Pieces, Style
from exllama.tokenizer.tokenizer import STOP_NAMES, SpecialTokens, Tokenizer, is_panic

MAX_TOKENIZER = 64 << 20
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def _letter(char: str) -> str:
    return rf"(?:{char}|\\u{ord(char):04x})"


# "Regex": "pattern" anywhere, also with its key spelled in escapes: the only way in which a pattern enters.
_REGEX = re.compile(rf'"{"".join(map(_letter, "Regex"))}"\s*:\s*("(?:[^"\\]|\\.)*")'.encode(), re.DOTALL)


def read_folder_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises SourceError when there is none, FormatError for nonsense, UnsupportedModelError for one that can not be read.
    """
    path = folder / "tokenizer.json"
    backend = _read_backend(path)
    settings = {**_optional(folder, "special_tokens_map.json"), **_optional(folder, "tokenizer_config.json")}
    decoder = _component(backend.decoder)
    added = backend.get_added_tokens_decoder()
    names = {name: text for name in _TOKEN_NAMES if (text := _token_text(settings.get(name))) is not None}
    special = _special_tokens(backend, names, _stop_ids(folder, config), added)
    size = max(backend.get_vocab_size(with_added_tokens=True), 1 + max(added, default=-1))
    template = _chat_template(folder, settings, names)
    pieces = Pieces(backend.id_to_token, frozenset(added), _style(path, decoder))
    return Tokenizer(backend, pieces, special, size, template, _strips_blank(decoder))


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    raw = _read_bytes(path)
    for match in _REGEX.finditer(raw):
        try:
            check_pattern(json.loads(match[1]))
        except PatternError as error:
            raise FormatError(path, "Regex", str(error), "a pattern as tokenizers need it") from error
        except ValueError as error:
            raise FormatError(path, "Regex", match[1][:80], "a JSON string") from error
    try:
        backend = tokenizers.Tokenizer.from_buffer(raw)
        backend.no_truncation()
        backend.no_padding()
    except BaseException as error:
        if isinstance(error, Exception) or is_panic(error):
            raise FormatError(path, "content", str(error)[:200], "a tokenizer of the tokenizers library") from error
        raise
    return backend


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        if (path.parent / "tokenizer.model").is_file():
            message = f"{path.parent} has a tokenizer.model alone, which is not read"
            raise UnsupportedModelError(f"{message}. Save the tokenizer with transformers to get a tokenizer.json")
        raise SourceError(f"{path.parent} has no tokenizer.json. Fetch it from where the model came from")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_TOKENIZER + 1)
    except OSError as error:
        raise SourceError(f"{path} can not be read: {error.strerror or error}. Check its permissions") from error
    if len(raw) > MAX_TOKENIZER:
        raise FormatError(path, "file size", f"more than {MAX_TOKENIZER} bytes", f"at most {MAX_TOKENIZER}")
    return raw


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name) if (folder / name).is_file() else {}


def _component(part: Any) -> str:
    """The JSON of a decoder or the like."""
    return part.__getstate__().decode() if part is not None else ""


def _style(path: Path, decoder: str) -> Style:
    if '"ByteLevel"' in decoder:
        return "byte_level"
    if '"ByteFallback"' in decoder or '"Metaspace"' in decoder or "\u2581" in decoder:
        return "sentencepiece"
    found, supported = decoder[:100] or "none", "ByteLevel, ByteFallback and Metaspace"
    raise UnsupportedModelError(f"{path}: the decoder {found} is not supported; supported: {supported}")


def _strips_blank(decoder: str) -> bool:
    """Whether the tokenizer puts a blank before a text that decoding takes away again."""
    return '"Strip"' in decoder or ('"Metaspace"' in decoder and '"prepend_scheme":"never"' not in decoder)


def _token_text(value: Any) -> str | None:
    """A token as tokenizer_config.json has it: its text, or an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _stop_ids(folder: Path, config: dict[str, Any]) -> list[int]:
    """eos_token_id of generation_config.json, then of config.json: a number, a list, or nothing."""
    found: list[int] = []
    for source in (_optional(folder, "generation_config.json"), config):
        value = source.get("eos_token_id")
        for item in value if isinstance(value, list) else [value]:
            if item is not None and (type(item) is not int or item < 0):
                raise FormatError(folder, "eos_token_id", item, "a token id, or a list of them")
            if item is not None:
                found.append(item)
    return found


def _special_tokens(
    backend: tokenizers.Tokenizer, names: dict[str, str], stop_ids: list[int], added: dict[int, Any]
) -> SpecialTokens:
    control = frozenset(index for index, token in added.items() if token.special)
    bos, eos = (backend.token_to_id(names[name]) if name in names else None for name in ("bos_token", "eos_token"))
    named = [index for index in sorted(control) if added[index].content in STOP_NAMES]
    stops = [index for index in (eos, *stop_ids, *named) if index is not None]
    prefix, suffix = _surroundings(backend)
    return SpecialTokens(bos, tuple(dict.fromkeys(stops)), control, prefix, suffix, names)


def _surroundings(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text, seen on a text of one letter."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()


def _chat_template(folder: Path, settings: dict[str, Any], names: dict[str, str]) -> ChatTemplate | None:
    """chat_template.jinja, else the text (or the one named default) in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        with open(path, "rb") as file:
            raw = file.read(4 * MAX_TEMPLATE + 1)
        try:
            text: Any = raw.decode()
        except UnicodeDecodeError as error:
            raise FormatError(path, "content", raw[:40], "UTF-8 text") from error
    else:
        path, text = folder / "tokenizer_config.json", settings.get("chat_template")
        if isinstance(text, list):
            named = {item.get("name"): item.get("template") for item in text if isinstance(item, dict)}
            text = named.get("default")
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > MAX_TEMPLATE:
        found = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise FormatError(path, "chat_template", found, f"a text of at most {MAX_TEMPLATE} characters")
    return ChatTemplate(text, names)
