"""Texts that tokenizers disagree about, and small vocabularies trained on them."""
# ruff: noqa: RUF001 - the confusable characters are the point

from __future__ import annotations

import json

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  blanks   and\ttabs\t\t and a trailing one ",
    "line\nbreaks\n\nand\r\nothers\r\n\r\n  \n indented\n",
    "\n",
    "\n\n   \n\t x",
    "I'm, you're, he's, they've, we'll, she'd, it'S, I'M, WE'LL, DON'T, rock'n'roll 'tis 'twas",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 2024-05-17 0x1F 50% $9.99 #42",
    "the quick brown fox jumps over the lazy dog THE QUICK BROWN FOX camelCase PascalCase snake_case kebab-case",
    "def f(x):\n    return x**2  # squared\n\n\tif not x:\n\t\treturn [i for i in range(10)]\n",
    'int main(){printf("%d\\n",i++);}//comment /* more */ a<=b&&c!=d||e->f::g',
    '...!!!???---===***///\\\\\\|||~~~```^^^ ,;:\'"[]{}() <html><body class="x"></body></html>',
    "naïve café résumé Ünïcödé ÀÉÎÕÜ ßß straße Łódź Dvořák",
    "русский текст и слова, Ελληνικά γράμματα, Հայերեն, ქართული",
    "中文字符，没有空格。日本語のテキスト、カタカナ。한국어 텍스트",
    "العربية ١٢٣ עברית हिन्दी में पाठ ภาษาไทย தமிழ் বাংলা",
    "emoji 🙂 🎉🎉 👩‍👩‍👧 🇩🇪 👍🏽 ✨ ☃️",
    "math ∑∫√∞ ≤≥≠ αβγ x² H₂O ½ Ⅷ ℵ₀ ∂f/∂x",
    "blanks:\u00a0nbsp\u2003em\u3000wide\u200bzero\u2028line\x0bvertical\x0cform",
    "titlecase ǅ ǈ modifiers ʰʲʷ marks combined: á ñ ộ",
    "a\x01b\x7fc",
    "https://example.org/path?q=1&r=two#frag user@example.com C:\\dir\\file.txt",
    "word" * 30,
    " " * 37 + "x" + "\n" * 9 + "y",
    "mixed中文and英文 with123numbers４５６ and＿wide",
    "_under __dunder__ _1 1_ a1b2c3 v1.2.3-rc4",
    "'s 's' ''s s' 'd 'Dx 'll 'LLx 've're",
    "e\u0301 decomposed n\u0303 o\u0302\u0323 가",
]

SPECIAL = [
    "<|im_start|>user\nHi<|im_end|>",
    "a<|im_end|>b <|im_end|> c",
    "<|im_end",
    "<think> x </think>",
    "<|im_start|><|im_start|>",
]


def byte_level_vocabulary(size: int = 1500) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by id, and merges: trained without cuts, so that merges reach over every place where a text may be cut."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, max_token_length=6, min_frequency=1
    )
    pieces = [text[start : start + 12] for text in TEXTS for start in range(0, len(text), 4)]
    backend.train_from_iterator(pieces, trainer)
    return _parts(backend)


def sentencepiece_vocabulary(size: int = 1200) -> tuple[list[str], list[float]]:
    """Tokens by id and their scores, in the order of SentencePiece: control tokens, bytes, pieces, characters."""
    backend = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=8, min_frequency=1)
    texts = [text.replace(" ", "\u2581") for text in TEXTS[:17]]
    pieces = [text[start : start + 16] for text in texts for start in range(0, len(text), 5)]
    backend.train_from_iterator(pieces, trainer)
    tokens, merges = _parts(backend)
    joined = [left + right for left, right in merges]
    letters = sorted(set(tokens) - set(joined) | {"\u2581"})
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(joined), *letters]
    scores = [0.0] * 259 + [-float(index) for index in range(len(order) - 259)]
    return order, scores


def _parts(backend: tokenizers.Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [(left, right) for left, right in model["merges"]]
