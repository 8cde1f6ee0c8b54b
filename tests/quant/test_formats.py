"""Every format in three implementations: the numpy class, native code under each instruction set, PyPI's gguf."""

import numpy as np
import pytest

from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.codec import decode
from lltool.quant.formats.base import Floats, Format
from lltool.quant.formats.table import FORMATS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinity times zero, in random blocks

PLAIN = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
NUMBERS = (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64)
# Types that PyPI's gguf does not decode.
UNKNOWN_TO_GGUF = (GGMLType.Q8_1, GGMLType.Q8_K, GGMLType.Q1_0, GGMLType.Q2_0)


def random_blocks(type: GGMLType, count: int = 400) -> Bytes:
    """Random bytes, which contain every code and sign; scales include infinity, NaN, zero and subnormals."""
    blocks = np.random.default_rng(int(type)).integers(0, 256, (count, LAYOUT[type].bytes), dtype=np.uint8)
    blocks[0], blocks[1] = 0, 255
    return blocks


def assert_same_floats(actual: Floats, expected: Floats) -> None:
    """Asserts bitwise equality, except that all NaNs are equal, because processors choose different payloads."""
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), ~numbers)
    np.testing.assert_array_equal(actual[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def test_every_type_has_one_definition() -> None:
    assert set(FORMATS) | {*PLAIN, *NUMBERS} == set(GGMLType)
    with pytest.raises(TypeError, match="Q4_0 is already defined by Q4_0"):

        class Again(Format, type=GGMLType.Q4_0):
            pass


@pytest.mark.parametrize("type", FORMATS, ids=lambda type: type.name)
def test_native_decode_equals_the_definition(type: GGMLType, each_isa: str) -> None:
    blocks = random_blocks(type)
    assert_same_floats(decode(blocks, type), FORMATS[type].decode(blocks))


@pytest.mark.parametrize("type", [*PLAIN, *sorted(set(FORMATS) - {*UNKNOWN_TO_GGUF})], ids=lambda type: type.name)
def test_decode_equals_gguf(type: GGMLType) -> None:
    oracle = pytest.importorskip("gguf.quants")
    blocks = random_blocks(type).reshape(8, -1)
    expected = oracle.dequantize(blocks, oracle.GGMLQuantizationType(int(type)))
    assert_same_floats(decode(blocks, type), expected.reshape(8, -1))


@pytest.mark.parametrize("type", FORMATS, ids=lambda type: type.name)
def test_codes_fit_the_affine_view(type: GGMLType) -> None:
    """A group is 16 or 32 weights and never spans blocks; a code always fits in a byte."""
    format = FORMATS[type]
    codes, scale, _ = format.unpack(random_blocks(type))
    assert format.group in (16, 32)
    assert codes.shape == (400, format.layout.block)
    assert scale.shape == (400, format.layout.block // format.group)
    assert codes.min() >= 0
    assert codes.max() <= 255


@pytest.mark.parametrize(
    ("type", "blocks", "expected"),
    [
        # f16 1.0, then bits 1, 0, 1, ...: plus and minus one
        (GGMLType.Q1_0, bytes([0x00, 0x3C] + [0b01010101] * 16), [1.0, -1.0] * 64),
        # f16 0.5, then pairs 0, 1, 2, 3: -1, 0, 1, 2 times 0.5
        (GGMLType.Q2_0, bytes([0x00, 0x38] + [0b11100100] * 16), [-0.5, 0.0, 0.5, 1.0] * 16),
        # f16 2.0, f16 sum, then int8
        (GGMLType.Q8_1, bytes([0x00, 0x40, 0, 0, *range(16), *range(240, 256)]), [*range(0, 32, 2), *range(-32, 0, 2)]),
        # f32 1.0, then int8; the sums do not matter
        (GGMLType.Q8_K, bytes([0, 0, 0x80, 0x3F, *range(256), *[7] * 32]), [*range(128), *range(-128, 0)]),
    ],
    ids=["Q1_0", "Q2_0", "Q8_1", "Q8_K"],
)
def test_blocks_by_hand(type: GGMLType, blocks: bytes, expected: list[float], each_isa: str) -> None:
    decoded = decode(np.frombuffer(blocks, np.uint8)[None], type)
    np.testing.assert_array_equal(decoded[0], np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", ["<i1", "<i2", "<i4", "<i8", "<f8"])
def test_plain_numbers_decode(dtype: str) -> None:
    type = {"<i1": GGMLType.I8, "<i2": GGMLType.I16, "<i4": GGMLType.I32, "<i8": GGMLType.I64, "<f8": GGMLType.F64}
    values = np.array([[1, -2, 100], [0, 7, -128]], dtype)
    np.testing.assert_array_equal(decode(values.view(np.uint8), type[dtype]), values.astype(np.float32))


@pytest.mark.parametrize("columns", [32, 64, 480, 512, 544, 2080])
def test_rows_of_any_length_and_threads(columns: int, each_isa: str) -> None:
    """Native code unpacks several blocks ahead; tails and threads do not change the result."""
    blocks = random_blocks(GGMLType.Q5_1, 40 * columns // 32)
    expected = FORMATS[GGMLType.Q5_1].decode(blocks).reshape(40, columns)
    for threads in (1, 3):
        assert_same_floats(decode(blocks.reshape(40, -1), GGMLType.Q5_1, threads), expected)


def test_a_row_with_a_partial_block_is_refused() -> None:
    with pytest.raises(ValueError, match="row of 17 bytes is not a multiple of the Q4_0 block of 18"):
        decode(np.zeros((1, 17), np.uint8), GGMLType.Q4_0)
