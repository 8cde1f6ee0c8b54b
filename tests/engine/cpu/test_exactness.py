"""Products of every format under every instruction set, as exact as the arithmetic allows.

What a product may be wrong by has two parts. A sum of n terms in float32 is off by n * 2^-24 of what its terms sum up
to without their signs, at most. Activations that are rounded to steps of s move it by s / 2 times each weight at most,
and as a rule by the root of the sum of (s * weight)^2 / 12.
"""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import Precision
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.linear import linear
from lltool.engine.program import Weight
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant.codec import decode, encode
from lltool.quant.formats.table import FORMATS
from tests.engine.cpu.test_cpu import (
    FLOAT_TYPES,
    ISAS,
    TYPES,
    VOCAB,
    Array,
    f32_weight,
    one_sequence,
    program,
    random_weight,
    run_all,
    vector,
)

QUANTIZED = [type for type in TYPES if type not in FLOAT_TYPES]
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 33)  # a panel is 4 or 12 tokens
ROWS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65)  # a tile is 4, 8 or 16 rows, a task 64
# What fills no vector, no strip of 16 groups of 32, or no row as padded to 128.
COLUMNS = (*range(32, 320, 32), 480, 512, 544)
FLOAT_COLUMNS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 160, 257)
# Where a block has the halves that scale all of it.
SCALES = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.IQ4_XS: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
}

Wide = NDArray[np.float64]


def int8_values(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Activations that int8 holds exactly: integers up to 127 times a power of two.

    Three of each eight columns that share a scale in a row reach 127, so twelve of 32, of which a panel may keep eight.
    """
    groups = rng.integers(-127, 128, (rows, columns // 32, 2, 4, 4))  # halves of 32, lanes, columns of a lane
    groups[..., 0, :, :2] = 127
    groups[..., 1, :, 0] = -127
    scales = 2.0 ** rng.integers(-8, -5, (rows, columns // 32, 1, 1, 1))
    return (groups * scales).reshape(rows, columns).astype(np.float32)


def whole_blocks(type: GGMLType, columns: int) -> int:
    """At least so many columns."""
    block = LAYOUT[type].block
    return -(-columns // block) * block


def multiply(
    weight: Weight, x: Array, isa: str, precision: Precision, tokens: tuple[int, ...], bias: Array | None = None
) -> list[tuple[Wide, Wide]]:
    """For each number of tokens the rows of x that it takes, and their products as found; x is (VOCAB, columns)."""
    rows, columns = weight.shape
    weights = [f32_weight("embed", x), weight] + ([] if bias is None else [vector("w.bias", bias)])
    made = program(weights, columns, lambda g, x: linear(g, x, ("w.weight",), (rows,))[0])
    cpu = CpuExecutor(made, 1, max_batch=max(tokens), threads=2, precision=precision, instruction_set=isa)
    found = []
    for count in tokens:
        batch = one_sequence(count)
        found.append((x[batch.tokens].astype(np.float64), run_all(cpu, batch).astype(np.float64)))
    return found


def terms(weight: Weight) -> Wide:
    """The size of what the kernels add up for each weight: of the scaled code and of the minimum, which may cancel."""
    if weight.type in FLOAT_TYPES:
        return np.abs(decode(weight.data, weight.type)).astype(np.float64)
    format, (rows, columns) = FORMATS[weight.type], weight.shape
    groups = format.unpack(weight.data.reshape(-1, format.layout.bytes))
    shape = (-1, format.layout.block // format.group, format.group)
    size = np.abs(groups.scale[..., None] * (groups.codes.reshape(shape).astype(np.float64) - format.zero))
    if groups.min is not None:
        size += np.abs(groups.min[..., None])
    return np.asarray(size.reshape(rows, columns))


def summing_error(weight: Weight, x: Wide) -> Wide:
    """A bound for sums (T, rows) in four lanes or more; 64 is for adding these up, decoding, scaling and a bias."""
    return np.asarray((weight.shape[1] / 4 + 64) * 2.0**-24 * (np.abs(x) @ terms(weight).T) + 1e-30)


def rounding_steps(x: Wide, sharing: int, most: int) -> Wide:
    """The step of each activation where the largest of `sharing` neighbours becomes `most`.

    Of 8: those that lie in one lane of a row, columns 4i to 4i + 3 of both halves of 32.
    """
    shape = (len(x), -1, 32 // sharing, sharing) if sharing != 8 else (len(x), -1, 2, 4, 4)
    groups = np.abs(x).reshape(shape)
    largest = groups.max(axis=(2, 4) if sharing == 8 else 3, keepdims=True)
    return np.asarray(np.broadcast_to(largest / most, groups.shape).reshape(x.shape))


def check_sums(weight: Weight, x: Array, isa: str, precision: Precision, tokens: tuple[int, ...]) -> None:
    """Activations that need no rounding: only the sums may be off."""
    bias = np.linspace(-1, 1, weight.shape[0], dtype=np.float32)
    matrix = decode(weight.data, weight.type).astype(np.float64)
    for taken, found in multiply(weight, x, isa, precision, tokens, bias):
        bound = summing_error(weight, taken) + 2.0**-23
        error = np.abs(found - (taken @ matrix.T + bias))
        assert np.all(error <= bound), (weight.shape, len(taken), np.max(error / bound))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", QUANTIZED, ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_any_number_of_rows_and_tokens(type: GGMLType, isa: str, precision: Precision) -> None:
    rng = np.random.default_rng(int(type))
    columns = whole_blocks(type, 160)
    x, weight = int8_values(rng, VOCAB, columns), random_weight(rng, "w.weight", type, max(ROWS), columns)
    check_sums(weight, x, isa, precision, TOKENS)
    for rows in ROWS[:-1]:
        some = replace(weight, shape=(rows, columns), data=weight.data[:rows])
        check_sums(some, x, isa, precision, (1, 3, 13))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", QUANTIZED, ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_any_number_of_columns(type: GGMLType, isa: str, precision: Precision) -> None:
    rng = np.random.default_rng(int(type))
    for columns in sorted({whole_blocks(type, columns) for columns in COLUMNS}):
        x, weight = int8_values(rng, VOCAB, columns), random_weight(rng, "w.weight", type, 18, columns)
        check_sums(weight, x, isa, precision, (1, 4, 8, 13))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", SCALES, ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_integers_come_out_to_the_last_bit(type: GGMLType, isa: str, precision: Precision) -> None:
    """With scales of 1, every product and every sum is an integer that float32 holds."""
    rng = np.random.default_rng(int(type))
    columns = whole_blocks(type, 288)
    data = random_weight(rng, "w.weight", type, 18, columns).data.copy()
    blocks = data.reshape(-1, LAYOUT[type].bytes)
    for offset in SCALES[type]:
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    groups = int8_values(rng, VOCAB, columns).reshape(VOCAB, -1, 32)
    x = np.asarray(groups / np.abs(groups).max(axis=2, keepdims=True) * 127, np.float32).reshape(VOCAB, columns)
    assert np.array_equal(x, np.round(x))
    matrix = decode(data, type).astype(np.float64)
    for taken, found in multiply(Weight("w.weight", type, (18, columns), data), x, isa, precision, TOKENS):
        assert np.array_equal(found, taken @ matrix.T), len(taken)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", QUANTIZED, ids=lambda t: t.name)
def test_activations_round_to_the_nearest_step(type: GGMLType, isa: str) -> None:
    """One or two tokens have a scale for eight columns, a panel one for 32."""
    rng = np.random.default_rng(int(type))
    columns = whole_blocks(type, 544)
    x = rng.standard_normal((VOCAB, columns), np.float32)
    weight = random_weight(rng, "w.weight", type, 65, columns)
    matrix = np.abs(decode(weight.data, type).astype(np.float64))
    for taken, found in multiply(weight, x, isa, "int8", (1, 2, 4, 13, 33)):
        steps = rounding_steps(taken, 8 if len(taken) <= 2 else 32, 127)
        error = np.abs(found - taken @ decode(weight.data, type).astype(np.float64).T)
        assert np.all(error <= 0.5 * steps @ matrix.T + summing_error(weight, taken)), len(taken)
        usual = np.sqrt(steps**2 / 12 @ (matrix**2).T)
        # As often up as down; rows share a token's roundings, so that their errors are not many samples.
        assert 0.5 < np.sqrt(np.mean((error / usual) ** 2)) < 1.25, len(taken)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", QUANTIZED, ids=lambda t: t.name)
def test_columns_far_larger_than_the_rest_spoil_nothing(type: GGMLType, isa: str) -> None:
    """Up to four columns of a token are multiplied as floats: the others round as if those were not there."""
    rng = np.random.default_rng(int(type))
    columns = whole_blocks(type, 288)
    x = rng.standard_normal((VOCAB, columns), np.float32)
    groups = rng.permuted(np.tile(np.arange(columns // 32), (VOCAB, 1)), axis=1)[:, :4]
    large = (np.arange(VOCAB)[:, None], 32 * groups + rng.integers(0, 32, groups.shape))
    rest = x.copy()
    rest[large] = 0
    x[large] = 1000 + 100 * x[large]
    weight = random_weight(rng, "w.weight", type, 18, columns)
    matrix = decode(weight.data, type).astype(np.float64)
    for taken, found in multiply(weight, x, isa, "int8", (12, 33)):
        steps = rounding_steps(rest[one_sequence(len(taken)).tokens].astype(np.float64), 32, 127)
        bound = 0.5 * steps @ np.abs(matrix).T + summing_error(weight, taken)
        assert np.all(np.abs(found - taken @ matrix.T) <= bound), len(taken)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", QUANTIZED, ids=lambda t: t.name)
def test_a_token_of_a_panel_does_not_depend_on_its_neighbours(type: GGMLType, isa: str) -> None:
    """From three tokens on; some tokens have columns that are far larger than the rest, each its own."""
    rng = np.random.default_rng(int(type))
    columns = whole_blocks(type, 288)
    x = rng.standard_normal((VOCAB, columns), np.float32)
    for token in range(0, VOCAB, 3):
        x[token, rng.choice(columns, 6, replace=False)] *= 200
    weight = random_weight(rng, "w.weight", type, 18, columns)
    sizes = (3, 4, 5, 8, 12, 13, 33, 64)
    found = {len(taken): out for taken, out in multiply(weight, x, isa, "int8", sizes)}
    for size in sizes:
        np.testing.assert_array_equal(found[size], found[64][:size], err_msg=str(size))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", FLOAT_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_float_weights(type: GGMLType, isa: str, precision: Precision) -> None:
    """Of any number of columns. In int8 precision a panel's activations may be rounded to 14 bits, 32 to a scale."""
    rng = np.random.default_rng(int(type))
    for columns in FLOAT_COLUMNS:
        x = rng.standard_normal((VOCAB, columns), np.float32)
        data = encode(rng.standard_normal((37, columns), np.float32), type)
        weight = Weight("w.weight", type, (37, columns), data)
        matrix = decode(data, type).astype(np.float64)
        for taken, found in multiply(weight, x, isa, precision, (1, 3, 8, 13)):
            bound = summing_error(weight, taken)
            if precision == "int8" and len(taken) > 4 and columns % 32 == 0:
                bound += 0.5 * rounding_steps(taken, 32, 8191) @ np.abs(matrix).T
            error = np.abs(found - taken @ matrix.T)
            assert np.all(error <= bound), (columns, len(taken), np.max(error / bound))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", FLOAT_TYPES, ids=lambda t: t.name)
def test_integers_in_float_weights_come_out_to_the_last_bit(type: GGMLType, isa: str) -> None:
    rng = np.random.default_rng(int(type))
    x = rng.integers(-127, 128, (VOCAB, 257)).astype(np.float32)
    data = encode(rng.integers(-127, 128, (ROWS[-1], 257)).astype(np.float32), type)
    for rows in ROWS:
        weight = Weight("w.weight", type, (rows, 257), data[:rows])
        matrix = decode(weight.data, type).astype(np.float64)
        for taken, found in multiply(weight, x, isa, "f32", TOKENS if rows == ROWS[-1] else (1, 3, 13)):
            assert np.array_equal(found, taken @ matrix.T), (rows, len(taken))
