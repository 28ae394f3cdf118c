"""Tokenizers out of GGUF metadata: the model's own tokenizer.json where the file holds it, else a rebuilt one.

Rebuilt are byte-level BPE (`gpt2`) and SentencePiece BPE by score (`llama`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from exllama.errors import FormatError, UnsupportedModelError
from exllama.tokenizer.backend import count_ids, decoder_of, load_backend, strips_blank, style_of, surroundings
from exllama.tokenizer.chat_template import MAX_TEMPLATE, ChatTemplate
from exllama.tokenizer.pieces import Pieces, Style
from exllama.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from exllama.tokenizer.tokenizer import STOP_NAMES, SpecialTokens, Tokenizer

logger = logging.getLogger("exllama")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MAX_TOKENS = 1 << 19  # twice the largest vocabulary in use
MAX_TOKEN_LENGTH = 1 << 12  # characters; the merges of a SentencePiece token are tried at every place
_MODELS = ("gpt2", "llama")
_EMBEDDED = "tokenizer.huggingface.json"


class GgufMetadata(Protocol):
    """The metadata of a GGUF file, as the loader reads them."""

    def __contains__(self, key: object) -> bool: ...
    def text(self, key: str, default: str | None = None) -> str | None: ...
    def raw_text(self, key: str) -> bytes | None: ...
    def integer(self, key: str, default: int | None = None) -> int | None: ...
    def boolean(self, key: str, default: bool | None = None) -> bool | None: ...
    def strings(self, key: str, limit: int = ...) -> list[str] | None: ...
    def numbers(self, key: str, whole: bool = True) -> NDArray[np.generic] | None: ...
    def error(self, key: str, found: object, expected: object, hint: str = "") -> FormatError: ...


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    types: NDArray[np.generic]  # (tokens,) of the kinds above
    ids: dict[str, int]  # the first id of every text

    def of_type(self, *kinds: int) -> list[int]:
        return [int(index) for index in np.flatnonzero(np.isin(self.types, kinds))]


def read_gguf_tokenizer(metadata: GgufMetadata, vocab_rows: int) -> Tokenizer:
    """The tokenizer of a model whose embedding has vocab_rows rows.

    Raises UnsupportedModelError for another tokenizer or an unknown pre-tokenizer, FormatError for nonsense.
    """
    embedded = metadata.raw_text(_EMBEDDED)
    if embedded is not None:
        return _embedded_tokenizer(metadata, embedded, vocab_rows)
    model = metadata.text("tokenizer.ggml.model")
    if model not in _MODELS:
        raise UnsupportedModelError(f"GGUF tokenizer {model!r} is not supported; supported: {', '.join(_MODELS)}")
    vocabulary = _read_vocabulary(metadata, vocab_rows)
    style: Style
    if model == "gpt2":
        style, prefix, pre = "byte_level", False, _pre_tokenizer(metadata)
        backend, add_bos = _byte_level(metadata, vocabulary, pre), pre.add_bos
    else:
        style, prefix = "sentencepiece", bool(metadata.boolean("tokenizer.ggml.add_space_prefix", True))
        backend, add_bos = _sentencepiece(metadata, vocabulary, prefix), True
    literal = _add_special(backend, vocabulary)
    tokens, control = vocabulary.tokens, vocabulary.of_type(CONTROL, UNKNOWN)
    special = _special_tokens(metadata, tokens, control, add_bos, {"bos": 1, "eos": 2} if model == "llama" else {})
    pieces = Pieces(lambda index: tokens[index] if index < len(tokens) else None, literal, style)
    template = _chat_template(metadata, special.template_names)
    return Tokenizer(backend, pieces, special, len(tokens), template, strip_leading_blank=prefix)


def _embedded_tokenizer(metadata: GgufMetadata, raw: bytes, vocab_rows: int) -> Tokenizer:
    """The tokenizer.json inside the metadata; ids of special tokens and what surrounds a text as the other keys say."""
    backend = load_backend(raw, lambda part, found, expected: metadata.error(f"{_EMBEDDED}: {part}", found, expected))
    size = count_ids(backend)
    if not 0 < size <= vocab_rows:
        raise metadata.error(_EMBEDDED, f"ids up to {size - 1}", f"below {vocab_rows}, the rows of token_embd")
    added, decoder = backend.get_added_tokens_decoder(), decoder_of(backend)
    tokens = [backend.id_to_token(index) or "" for index in range(size)]
    control = sorted(index for index, token in added.items() if token.special)
    special = _special_tokens(metadata, tokens, control, False, {})
    prefix, suffix = surroundings(backend)
    if "tokenizer.ggml.add_bos_token" not in metadata:
        special = replace(special, prefix=prefix)
    if "tokenizer.ggml.add_eos_token" not in metadata:
        special = replace(special, suffix=suffix)
    pieces = Pieces(backend.id_to_token, frozenset(added), style_of(decoder))
    template = _chat_template(metadata, special.template_names)
    return Tokenizer(backend, pieces, special, size, template, strips_blank(decoder))


def _read_vocabulary(metadata: GgufMetadata, vocab_rows: int) -> _Vocabulary:
    tokens = metadata.strings("tokenizer.ggml.tokens", MAX_TOKENS)
    if not tokens or len(tokens) > vocab_rows:
        found = "nothing" if tokens is None else f"{len(tokens)} tokens"
        raise metadata.error("tokenizer.ggml.tokens", found, f"1 to {vocab_rows}, the rows of token_embd")
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_LENGTH:
        raise metadata.error("tokenizer.ggml.tokens", f"a token of {longest} characters", f"at most {MAX_TOKEN_LENGTH}")
    types = metadata.numbers("tokenizer.ggml.token_type")
    if types is None:
        types = np.full(len(tokens), NORMAL, np.int32)
    if len(types) != len(tokens):
        expected = f"one for each of {len(tokens)} tokens"
        raise metadata.error("tokenizer.ggml.token_type", f"{len(types)} entries", expected)
    if types.min() < 0 or types.max() > BYTE:
        kinds = [int(types.min()), int(types.max())]
        raise metadata.error("tokenizer.ggml.token_type", kinds, f"kinds {NORMAL} to {BYTE}")
    ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))  # the first of equal texts wins
    return _Vocabulary(tokens, types, ids)


def _pre_tokenizer(metadata: GgufMetadata) -> PreTokenizer:
    name = metadata.text("tokenizer.ggml.pre")
    if name is None:
        logger.warning("the GGUF file does not name its pre-tokenizer; 'default' is used, and answers may be worse")
        name = "default"
    if name not in PRE_TOKENIZERS:
        supported = ", ".join(sorted(PRE_TOKENIZERS))
        advice = f"Use the model's folder with its tokenizer.json, or a file that holds it as {_EMBEDDED}"
        raise UnsupportedModelError(f"GGUF pre-tokenizer {name!r} is not supported; supported: {supported}. {advice}")
    return PRE_TOKENIZERS[name]


def _byte_level(metadata: GgufMetadata, vocabulary: _Vocabulary, pre: PreTokenizer) -> tokenizers.Tokenizer:
    merges = _read_merges(metadata, vocabulary.ids)
    model = models.BPE(vocabulary.ids, merges, ignore_merges=pre.ignore_merges)
    backend = tokenizers.Tokenizer(model)
    cuts: list[Any] = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.patterns]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    return backend


def _read_merges(metadata: GgufMetadata, ids: dict[str, int]) -> list[tuple[str, str]]:
    """`"a b"` -> ("a", "b"). The first part may itself begin with a blank, in files that store raw text."""
    key = "tokenizer.ggml.merges"
    lines = metadata.strings(key)
    if lines is None:
        raise metadata.error(key, "nothing", "the merges of a byte-level BPE")
    merges: list[tuple[str, str]] = []
    for index, line in enumerate(lines):
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise metadata.error(f"{key}[{index}]", line, "two tokens of the vocabulary that join to a third")
        merges.append((left, right))
    return merges


def _sentencepiece(metadata: GgufMetadata, vocabulary: _Vocabulary, prefix: bool) -> tokenizers.Tokenizer:
    """SentencePiece joins the neighbours whose union scores highest: as BPE, a merge for every cut of every token.

    The union's score ranks the merge. Characters outside the vocabulary fall back to byte tokens.
    """
    scores = metadata.numbers("tokenizer.ggml.scores", whole=False)
    if scores is None or len(scores) != len(vocabulary.tokens) or not np.isfinite(scores).all():
        found = "nothing" if scores is None else f"{len(scores)} entries, finite: {bool(np.isfinite(scores).all())}"
        raise metadata.error("tokenizer.ggml.scores", found, f"a number for each of {len(vocabulary.tokens)} tokens")
    missing = next((byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary.ids), None)
    if missing is not None:
        raise metadata.error("tokenizer.ggml.tokens", f"no token <0x{missing:02X}>", "a token for every byte")
    merges = _merges_by_score(vocabulary, scores)
    unknown = next((vocabulary.tokens[index] for index in vocabulary.of_type(UNKNOWN)), None)
    model = models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    steps: list[Any] = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    return backend


def _merges_by_score(vocabulary: _Vocabulary, scores: NDArray[np.generic]) -> list[tuple[str, str]]:
    mergeable = {vocabulary.tokens[index] for index in vocabulary.of_type(NORMAL, UNUSED)}
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    merges: list[tuple[str, str]] = []
    for token in (vocabulary.tokens[index] for index in order):
        if len(token) > 1 and token in mergeable:
            cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            merges += [pair for pair in cuts if pair[0] in mergeable and pair[1] in mergeable]
    return merges


def _add_special(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> frozenset[int]:
    """Tells the backend which tokens are cut out of a text whole; returns the ids whose text is meant literally."""
    control, user = vocabulary.of_type(CONTROL, UNKNOWN), vocabulary.of_type(USER_DEFINED)
    backend.add_special_tokens([AddedToken(vocabulary.tokens[index], normalized=False) for index in control])
    backend.add_tokens([AddedToken(vocabulary.tokens[index], normalized=False) for index in user])
    return frozenset([*control, *user])


def _special_tokens(
    metadata: GgufMetadata, tokens: Sequence[str], control: list[int], add_bos: bool, defaults: dict[str, int]
) -> SpecialTokens:
    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.integer(key, defaults.get(name))
        if value is not None and not 0 <= value < len(tokens):
            raise metadata.error(key, value, f"an id below {len(tokens)}")
        return value

    bos, eos = token_id("bos"), token_id("eos")
    named = [index for index in control if tokens[index] in STOP_NAMES]
    stops = [index for index in (eos, token_id("eot"), token_id("eom"), *named) if index is not None]
    prefix = _surrounding(metadata, "add_bos_token", add_bos, bos)
    suffix = _surrounding(metadata, "add_eos_token", False, eos)
    names = {"bos": bos, "eos": eos, "unk": token_id("unknown"), "pad": token_id("padding")}
    texts = {f"{name}_token": tokens[index] for name, index in names.items() if index is not None}
    return SpecialTokens(bos, tuple(dict.fromkeys(stops)), frozenset(control), prefix, suffix, texts)


def _surrounding(metadata: GgufMetadata, flag: str, default: bool, token_id: int | None) -> tuple[int, ...]:
    key = f"tokenizer.ggml.{flag}"
    if not metadata.boolean(key, default and token_id is not None):
        return ()
    if token_id is None:
        raise metadata.error(key, True, "the id of the token to add", "The file asks for a token that it does not name")
    return (token_id,)


def _chat_template(metadata: GgufMetadata, names: Mapping[str, str]) -> ChatTemplate | None:
    text = metadata.text("tokenizer.chat_template")
    if text is None:
        return None
    if len(text) > MAX_TEMPLATE:
        raise metadata.error("tokenizer.chat_template", f"{len(text)} characters", f"at most {MAX_TEMPLATE}")
    return ChatTemplate(text, names)
