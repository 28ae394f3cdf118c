"""Tokenizers of Hugging Face folders: tokenizer.json, and the settings that lie beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from exllama.errors import FormatError, SourceError, UnsupportedModelError
from exllama.formats.bounded_json import read_object
from exllama.tokenizer.backend import count_ids, decoder_of, load_backend, strips_blank, style_of, surroundings
from exllama.tokenizer.chat_template import MAX_TEMPLATE, ChatTemplate
from exllama.tokenizer.pieces import Pieces
from exllama.tokenizer.tokenizer import STOP_NAMES, SpecialTokens, Tokenizer

MAX_TOKENIZER = 64 << 20
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_folder_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises SourceError when there is none, FormatError for nonsense, UnsupportedModelError for one that can not be read.
    """
    path = folder / "tokenizer.json"
    backend = load_backend(_read_bytes(path), partial(FormatError, path))
    settings = {**_optional(folder, "special_tokens_map.json"), **_optional(folder, "tokenizer_config.json")}
    decoder = decoder_of(backend)
    added = backend.get_added_tokens_decoder()
    names = {name: text for name in _TOKEN_NAMES if (text := _token_text(settings.get(name))) is not None}
    special = _special_tokens(backend, names, _stop_ids(folder, config), added)
    template = _chat_template(folder, settings, names)
    pieces = Pieces(backend.id_to_token, frozenset(added), style_of(decoder))
    return Tokenizer(backend, pieces, special, count_ids(backend), template, strips_blank(decoder))


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
    prefix, suffix = surroundings(backend)
    return SpecialTokens(bos, tuple(dict.fromkeys(stops)), control, prefix, suffix, names)


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
