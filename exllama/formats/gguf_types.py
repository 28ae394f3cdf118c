"""The element types of GGUF files: id, name, elements and bytes of a block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """`elements` consecutive values of a row are stored together in `nbytes` bytes."""

    name: str
    elements: int
    nbytes: int


_TABLE: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip

GGUF_TYPES = {number: BlockType(*row) for number, row in _TABLE.items()}
BLOCK_TYPES = {block.name: block for block in GGUF_TYPES.values()}

_REFUSED = {
    4: "Q4_2, removed from the format", 5: "Q4_3, removed from the format", 9: "Q8_1, an activation format",
    15: "Q8_K, an activation format", 31: "Q4_0_4_4, removed from the format", 32: "Q4_0_4_8, removed from the format",
    33: "Q4_0_8_8, removed from the format", 36: "IQ4_NL_4_4 (removed from the format) or I2_S of BitNet files",
    37: "IQ4_NL_4_8, removed from the format", 38: "IQ4_NL_8_8, removed from the format", 41: "Q1_0, not supported",
    42: "Q2_0, not supported",
}  # fmt: skip

_IK_LLAMA = {
    133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 137: "IQ2_K", 138: "IQ3_K", 139: "IQ4_K", 140: "IQ5_K", 141: "IQ6_K",
    144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS", 151: "Q8_KV", 152: "IQ5_KS", 153: "IQ2_KT", 154: "IQ3_KT",
    155: "IQ4_KT", 156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT",
}  # fmt: skip


def describe_refused(number: int) -> str:
    """What a type id that is not in GGUF_TYPES stands for."""
    if number in _REFUSED:
        return f"type {number} ({_REFUSED[number]})"
    if number in _IK_LLAMA:
        return f"type {number} ({_IK_LLAMA[number]} of ik_llama.cpp)"
    if 202 <= number <= 399:
        return f"type {number} (a row-interleaved type of ik_llama.cpp)"
    return f"type {number} (unknown)"
