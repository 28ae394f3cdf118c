"""EXL3: the decoder against published vectors and a decoder written bit by bit; files that break the format's rules."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from exllama import formats
from exllama.errors import ExllamaError, FormatError
from exllama.formats import trellis
from exllama.formats.trellis import Codebook
from exllama.loader.safetensors_checkpoint import SafetensorsCheckpoint
from tests.formats.exl3_writer import CODEBOOKS, RATES, Tensors, random_linear

STATES = np.array([0, 1, 2, 0x1234, 0x8000, 0xFFFF])
VALUES: dict[Codebook, str] = {
    "3inst": "3a25 bb5b 3b74 c066 b7f8 b110",
    "mcg": "3f60 304e ba13 3e0f b915 3acd",
    "mul1": "c2e8 3921 b72d b89e baf2 b936",
}
# Tile words (i * 0x9e37 + 0x1234) & 0xffff: states, and with mul1 the start of row 0, the end of row 15, the sum.
TILES = {
    1: ("726d e4da c9b5 936b 26d6 4dac 9b58 36b0 b936", "bf88 b821 3aea b874", "bed4 3f92 350f 3755", 3.902794),
    1.5: ("55dd 5775 aeeb bbac 7758 dd60 bac1 eb06 aaee", "b989 3c0e b874 3201", "c01b 38dc 300e b960", 17.025261),
    2: ("729a ca6b 29ac a6b0 9ac1 6b06 ac1a b06b 9ca6", "3c07 2200 3a1a bc34", "bbb4 b960 b5e0 bf35", 16.012100),
    2.5: ("397a cbd6 2f58 7ac1 eb06 5835 60d6 06b1 8e5e", "ac04 3755 344d 3ede", "36af 3e07 3ca6 3835", 18.410278),
    3: ("00b5 05ac 2d60 6b06 5835 c1ac 0d62 6b12 8016", "2f3f b502 b5fc 300e", "3e07 334e bc3b 3c7c", 3.091675),
    3.5: ("8e75 e758 3ac1 ac1a 60d6 0d62 6b12 b123 71ce", "3db4 ab2a 35b6 3cc2", "3ca6 bc3b 406c bef0", 10.957039),
    4: ("386b 86b0 6b06 b06b 06b1 6b12 b123 1234 6386", "ba30 c12c 3c8a b53a", "3835 3c7c bef0 38b2", -13.199532),
    5: ("ded6 dac1 5835 06b1 d624 c48d 91a7 34ec 46f6", "4027 3905 3b83 3c07", "b764 3485 b97c beb1", 1.321762),
    6: ("99ac 6b06 c1ac 6b12 c48d 234e d3b3 ecd9 2a66", "b952 3a89 b936 b5fc", "3485 3cbb 359a 3d00", 4.999260),
    7: ("eb58 ac1a 0d62 b123 91a7 d3b3 d9b2 d94e 0dd6", "b90d 3a97 ace1 b8ff", "b97c 359a c01e bc0a", 9.840919),
    8: ("46b0 b06b 6b12 1234 34ec ecd9 d94e 4ea2 f146", "be43 3c91 315b 34a0", "beb1 3d00 bc0a 3192", -2.409683),
}
SUMS: dict[tuple[Codebook, int], float] = {
    ("3inst", 2): 14.661621, ("3inst", 3): 4.766235, ("3inst", 4): 5.005249,
    ("mcg", 2): 4.104004, ("mcg", 3): -12.263672, ("mcg", 4): -8.450073,
}  # fmt: skip


def words(count: int) -> np.ndarray:
    return ((np.arange(count) * 0x9E37 + 0x1234) & 0xFFFF).astype(np.uint16).view(np.int16)


def bits_of(values: str) -> list[int]:
    return [int(value, 16) for value in values.split()]


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_codebook_values(codebook: Codebook) -> None:
    found = trellis.codebook_values(STATES, codebook).view(np.uint16)
    assert found.tolist() == bits_of(VALUES[codebook])


def test_codebook_statistics() -> None:
    """Over all states: how many values there are, and how they are spread."""
    for codebook, distinct, deviation in (("3inst", 10598, 1.2437), ("mcg", 10746, 1.2441), ("mul1", 913, 1.0003)):
        values = trellis.codebook_values(np.arange(1 << 16), codebook).astype(np.float64)  # type: ignore[arg-type]
        assert (len(np.unique(values)), round(values.std(), 4)) == (distinct, deviation)


@pytest.mark.parametrize("bits", RATES)
def test_tiles(bits: float) -> None:
    expected_states, first, last, total = TILES[bits]
    tile = words(int(16 * bits))
    state = trellis.states(tile.view(np.uint16), int(2 * bits))
    assert [*state[:8], state[-1]] == bits_of(expected_states)
    matrix = trellis.decode_tiles(tile[None, None], "mul1")
    assert matrix.shape == (16, 16)
    assert matrix[0, :4].view(np.uint16).tolist() == bits_of(first)
    assert matrix[15, 12:].view(np.uint16).tolist() == bits_of(last)
    assert matrix.astype(np.float64).sum() == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(("codebook", "bits"), SUMS)
def test_tiles_of_the_other_codebooks(codebook: Codebook, bits: int) -> None:
    matrix = trellis.decode_tiles(words(16 * bits)[None, None], codebook)
    assert matrix.astype(np.float64).sum() == pytest.approx(SUMS[codebook, bits], abs=1e-6)


@pytest.mark.parametrize("bits", RATES)
def test_states_overlap_around_the_ring(bits: float) -> None:
    """s[i] = s[i-1] << k | symbol, also from the last to the first; and each bit of the stream is a symbol's once."""
    rate2 = int(2 * bits)
    tile = np.random.default_rng(rate2).integers(0, 1 << 16, 8 * rate2, dtype=np.uint16)
    state = trellis.states(tile, rate2).astype(np.int64)
    ends = [(i + 1) * rate2 // 2 for i in range(256)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    for i, length in enumerate(lengths):
        assert state[i] >> length == state[i - 1] & 0xFFFF >> length
    stream = "".join(f"{s & (1 << length) - 1:0{length}b}" for s, length in zip(state, lengths, strict=True))
    assert stream == "".join(f"{word:032b}" for word in tile.view("<u4"))


def test_a_whole_linear() -> None:
    suh = np.where(np.arange(128) % 3 == 0, -0.5, 0.5)
    svh = np.where(np.arange(128) % 5 == 0, -0.25, 0.25)
    matrix = trellis.dequantize(words(8 * 8 * 64).reshape(8, 8, 64), suh, svh, "mul1").T  # (in, out)
    assert matrix[0, :4] == pytest.approx([-0.02152104, 0.36167616, -0.03278642, -0.05363255], abs=1e-8)
    assert matrix[127, 124:] == pytest.approx([-0.08588661, 0.22406039, 0.00866237, 0.00038957], abs=1e-8)
    assert (matrix.sum(), np.abs(matrix).sum()) == pytest.approx((-6.36760277, 1502.52044390), abs=1e-8)
    x = np.arange(128) / 128 - 0.5
    assert (x @ matrix)[:4] == pytest.approx([-0.13558501, -0.48045018, -0.46832786, -0.20707616], abs=1e-8)


def write(folder: Path, tensors: Tensors) -> SafetensorsCheckpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsCheckpoint(folder)


def load(folder: Path, tensors: Tensors, rows: int, columns: int, device: str = "reference") -> torch.Tensor:
    with write(folder, tensors) as checkpoint:
        return formats.load_weight(checkpoint, "a", (rows, columns), device).dequantize()


def slow_matrix(tensors: Tensors, codebook: str) -> np.ndarray:
    """(N, K) float64: bit by bit, position by position, and a Hadamard matrix by its definition."""
    tiles = tensors["a.trellis"].numpy().view(np.uint16)
    down, across, count = tiles.shape
    inner = np.empty((16 * down, 16 * across))
    for kt in range(down):
        for nt in range(across):
            bits = "".join(f"{high:016b}{low:016b}" for low, high in tiles[kt, nt].reshape(-1, 2)) * 2
            for i in range(256):
                end = (i + 1) * count // 16 + 16 * count
                lane, j = i >> 3, i & 7
                row, column = (lane & 3) * 2 + (j & 1) + 8 * ((j >> 1) & 1), (lane >> 2) + 8 * (j >> 2)
                inner[16 * kt + row, 16 * nt + column] = slow_value(int(bits[end - 16 : end], 2), codebook)
    hadamard = np.array([[(-1) ** (i & j).bit_count() for j in range(128)] for i in range(128)]) / math.sqrt(128)
    rotation = [np.kron(np.eye(side // 8), hadamard) for side in (down, across)]
    scales = [slow_scales(tensors, "suh", "su"), slow_scales(tensors, "svh", "sv")]
    return (scales[0][:, None] * (rotation[0] @ inner @ rotation[1]) * scales[1]).T


def slow_value(state: int, codebook: str) -> float:
    multiplier, addend = {"3inst": (89226354, 64248484), "mcg": (0xCBAC1FED, 0), "mul1": (0x83DCD12D, 0)}[codebook]
    x = (state * multiplier + addend) % (1 << 32)
    if codebook == "mul1":
        return float(np.float16((1024 + sum(x.to_bytes(4, "little"))) * 0.00676727294921875 - 10.3828125))
    low, high = np.frombuffer(((x & 0x8FFF8FFF) ^ 0x3B603B60).to_bytes(4, "little"), np.float16)
    return float(np.float16(low + high))


def slow_scales(tensors: Tensors, name: str, old: str) -> np.ndarray:
    if f"a.{name}" in tensors:
        return tensors[f"a.{name}"].double().numpy()
    return np.array([-1.0 if word >> j & 1 else 1.0 for word in tensors[f"a.{old}"].tolist() for j in range(16)])


FILES = [("mul1", bits, False) for bits in RATES] + [("mul1", 2.5, True), ("mcg", 3, False), ("3inst", 4, True)]


@pytest.mark.parametrize(("codebook", "bits", "old_signs"), FILES)
def test_files(tmp_path: Path, codebook: str, bits: float, old_signs: bool) -> None:
    """Padded on both sides and trimmed again; 200 x 100 is 2 x 1 blocks of 128."""
    tensors = random_linear("a", 200, 100, bits, codebook, old_signs)
    expected = slow_matrix(tensors, codebook)[:200, :100]
    found = load(tmp_path, tensors, 200, 100)
    assert found.shape == (200, 100)
    assert np.allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("length", [200, 256])
def test_a_bias_may_be_padded(tmp_path: Path, length: int) -> None:
    bias = torch.randn(length).half()
    with write(tmp_path, random_linear("a", 200, 100) | {"a.bias": bias}) as checkpoint:
        assert torch.equal(formats.load_vector(checkpoint, "a.bias", 200), bias[:200].float())
        with pytest.raises(FormatError, match=r"shape of a\.bias"):
            formats.load_vector(checkpoint, "a.bias", 199 - 100)


def changed(**changes: torch.Tensor | None) -> Tensors:
    """A matrix of 128 x 128 with other parts; None leaves one out."""
    tensors = random_linear("a", 128, 128)
    parts = {f"a.{part}": value for part, value in changes.items()}
    return {name: value for name, value in (tensors | parts).items() if value is not None}


HALVES = torch.ones(128).half()
BROKEN: dict[str, tuple[Tensors, str]] = {
    "trellis dtype": (changed(trellis=torch.zeros(8, 8, 64, dtype=torch.int32)), "dtype of a.trellis"),
    "trellis flat": (changed(trellis=torch.zeros(64, 64, dtype=torch.int16)), "shape of a.trellis"),
    "trellis rate": (changed(trellis=torch.zeros(8, 8, 72, dtype=torch.int16)), "shape of a.trellis"),
    "no bits": (changed(trellis=torch.zeros(8, 8, 0, dtype=torch.int16)), "shape of a.trellis"),
    "too few rows": (changed(trellis=torch.zeros(4, 8, 64, dtype=torch.int16)), "shape of a.trellis"),
    "too many columns": (changed(trellis=torch.zeros(8, 16, 64, dtype=torch.int16)), "shape of a.trellis"),
    "half rate of 3inst": (changed(trellis=torch.zeros(8, 8, 40, dtype=torch.int16), mul1=None), "shape of a.trellis"),
    "two codebooks": (changed(mcg=torch.zeros((), dtype=torch.int32)), "a"),
    "codebook dtype": (changed(mul1=torch.zeros(())), "a.mul1"),
    "codebook size": (changed(mul1=torch.zeros(3, dtype=torch.int32)), "a.mul1"),
    "no suh": (changed(suh=None), "a"),
    "no svh": (changed(svh=None), "a"),
    "suh twice": (changed(su=torch.zeros(8, dtype=torch.int16)), "a"),
    "suh dtype": (changed(suh=torch.ones(128)), "dtype of a.suh"),
    "suh length": (changed(suh=torch.ones(127).half()), "shape of a.suh"),
    "svh length": (changed(svh=torch.ones(256).half()), "shape of a.svh"),
    "su dtype": (changed(suh=None, su=torch.ones(8).half()), "dtype of a.su"),
    "sv length": (changed(svh=None, sv=torch.zeros(128, dtype=torch.int16)), "shape of a.sv"),
    "suh nan": (changed(suh=HALVES * float("nan")), "a.suh"),
    "svh infinite": (changed(svh=HALVES * float("inf")), "a.svh"),
    "scale": (changed(scale=torch.tensor(0.5)), "a.scale"),
    "scale of many": (changed(scale=torch.ones(128)), "a.scale"),
    "scale of none": (changed(scale=torch.ones(0)), "a.scale"),
    "dense as well": (changed(weight=torch.ones(128, 128)), "a"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_linears(tmp_path: Path, case: str) -> None:
    """S08: shapes and rates that disagree with the tensors are refused before any kernel sees them."""
    tensors, field = BROKEN[case]
    with pytest.raises(FormatError) as caught:
        load(tmp_path, tensors, 128, 128)
    assert caught.value.field == field
    assert caught.value.found is not None
    assert caught.value.expected


def test_an_obsolete_scale_of_one_is_ignored(tmp_path: Path) -> None:
    plain = load(tmp_path, random_linear("a", 128, 128), 128, 128)
    assert torch.equal(load(tmp_path, changed(scale=torch.ones(())), 128, 128), plain)


DTYPES = [torch.int16, torch.float16, torch.int32, torch.float32, torch.bool]
SHAPES = st.lists(st.sampled_from([0, 1, 8, 16, 24, 40, 64, 72, 128, 256]), max_size=4)
PARTS = ["trellis", "suh", "svh", "su", "sv", "mcg", "mul1", "scale", "weight"]
CHANGES = st.dictionaries(st.sampled_from(PARTS), st.none() | st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=4)
fuzzing = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(changes=CHANGES, rows=st.integers(1, 300), columns=st.integers(1, 300))
def test_any_linear_is_read_whole_or_refused(
    tmp_path: Path, changes: dict[str, tuple[torch.dtype, list[int]] | None], rows: int, columns: int
) -> None:
    """S08: whatever the metadata say."""
    made = {part: None if change is None else _small(*change) for part, change in changes.items()}
    try:
        found = load(tmp_path, changed(**made), rows, columns)
    except ExllamaError:
        return
    assert found.shape == (rows, columns)
    assert torch.isfinite(found).all()


def _small(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    while math.prod(shape) > 1 << 18:
        shape = shape[1:]
    return torch.ones(shape, dtype=dtype)
