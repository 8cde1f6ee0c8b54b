"""What a caller of the engine can give that is of no use: one sentence says what was wanted, and nothing changes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.generate import generate
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.gguf.errors import InputError
from tests.engine import tiny_gguf

GREEDY = Sampler(temperature=0)
WHOLE = "wanted whole numbers in a list or a one-dimensional array"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = tiny_gguf.metadata() | tiny_gguf.vocabulary()
    return tiny_gguf.write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", keys, tiny_gguf.tensors())


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with load_model(path, threads=1, context=128, sequences=4) as model:
        yield model


def int32(*values: int) -> Any:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ("hello", TypeError, "'hello' is text, wanted token ids; the model's `tokenizer.encode` makes them"),
        (b"\1\2", TypeError, "is text, wanted token ids"),
        (None, TypeError, f"token ids None, {WHOLE}"),
        (7, TypeError, f"token ids 7, {WHOLE}"),
        ({1, 2}, TypeError, WHOLE),
        ((i for i in (1, 2)), TypeError, WHOLE),
        ([1.5, 2.7], TypeError, rf"token ids \[1.5, 2.7\], {WHOLE}"),
        ([1.0], TypeError, WHOLE),
        ([True, False], TypeError, WHOLE),
        (["1"], TypeError, WHOLE),
        ([None], TypeError, WHOLE),
        ([[1, 2], [3]], TypeError, WHOLE),
        ([[1, 2], [3, 4]], TypeError, WHOLE),
        (np.array([[1, 2]]), TypeError, WHOLE),
        (np.array(3), TypeError, WHOLE),
        (np.array([1.0]), TypeError, WHOLE),
        (np.array([True]), TypeError, WHOLE),
        ([-1], InputError, "token id -1, wanted one from 0 to 95"),
        ([1, 2**40], InputError, "token id 1099511627776, wanted one from 0 to 95"),
        ([1, 2**64], InputError, "token id 18446744073709551616, wanted one from 0 to 95"),
        ([2**63, -1], InputError, "token id 9223372036854775808, wanted one from 0 to 95"),
        (np.array([2**64 - 1], np.uint64), InputError, "token id 18446744073709551615, wanted one from 0 to 95"),
        (np.array([96], np.int8), InputError, "token id 96, wanted one from 0 to 95"),
        ([], InputError, "no tokens to evaluate"),
        (np.empty(0), InputError, "no tokens to evaluate"),
    ],
)
def test_what_are_no_token_ids(model: Model, tokens: Any, error: type[Exception], message: str) -> None:
    sequence, calls = model.new_sequence(), model.calls
    with pytest.raises(error, match=message):
        model.evaluate(sequence, tokens)
    if message != "no tokens to evaluate":  # a piece of a batch, or a prompt, may be empty
        with pytest.raises(error, match=message):
            model.forward([(sequence, tokens, "all")])
        with pytest.raises(error, match=message):
            generate(model, tokens, sampler=GREEDY)
    assert (sequence.length, sequence.pages, model.calls) == (0, [], calls)


def test_what_are_token_ids(model: Model) -> None:
    def logits(tokens: Any) -> Any:
        return model.evaluate(model.new_sequence(), tokens)

    wanted = logits([1, 2, 3])
    for tokens in (
        (1, 2, 3), range(1, 4), [np.int64(1), np.uint8(2), 3], np.array([1, 2, 3], object),
        *(np.array([1, 2, 3], dtype) for dtype in ("i1", "u1", ">i4", "i8", "u8")), np.array([1, 9, 2, 9, 3, 9])[::2],
    ):  # fmt: skip
        np.testing.assert_array_equal(logits(tokens), wanted)


def test_a_sequence_of_another_model(path: Path, model: Model) -> None:
    with load_model(path, threads=1, context=128, deterministic=True) as other:
        theirs, mine = other.new_sequence(), model.new_sequence()
        before = other.evaluate(theirs, [1, 2, 3])
        with pytest.raises(InputError, match=r"tiny\.gguf: a sequence of another model was given.*new_sequence\(\)"):
            model.evaluate(theirs, [4])
        with pytest.raises(InputError, match="a sequence of another model was given"):
            model.forward([(mine, [1], "last"), (theirs, [4], "last")])
        assert (theirs.length, mine.length, mine.pages) == (3, 0, [])
        theirs.truncate(2)
        np.testing.assert_array_equal(other.evaluate(theirs, [3]), before)
    with pytest.raises(TypeError, match=r"None, wanted a sequence of this model; new_sequence\(\) makes one"):
        model.evaluate(None, [1])  # type: ignore[arg-type]


def test_a_sequence_that_comes_twice(model: Model) -> None:
    sequence = model.new_sequence()
    with pytest.raises(InputError, match="a sequence appears twice in a batch"):
        model.forward([(sequence, [1], "last"), (sequence, [2], "last")])
    assert sequence.length == 0


def test_a_text_longer_than_a_batch_that_the_cache_has_no_room_for(path: Path) -> None:
    with load_model(path, threads=1, context=128, batch=32) as model:
        held, sequence = model.new_sequence(), model.new_sequence()
        model.evaluate(held, [1] * 60)
        with pytest.raises(InputError, match="the cache is full: 2 more pages of 64 tokens wanted, 1 of 2 free"):
            model.evaluate(sequence, [2] * 100)
        assert (sequence.length, model.free_pages) == (0, 1)


LATE: dict[str, Callable[[Any], object]] = {
    "block": lambda logits: logits.block(0, 1),
    "all": lambda logits: logits.all(),
    "score": lambda logits: logits.score(int32(1, 2)),
    "compare": lambda logits: logits.compare(logits, int32(1, 2)),
    "scored_blocks": lambda logits: next(logits.scored_blocks(int32(1, 2))),
}


@pytest.mark.parametrize("name", LATE)
def test_logits_of_an_earlier_call(model: Model, name: str) -> None:
    logits = model.forward([(model.new_sequence(), [1, 2], "all")])
    LATE[name](logits)
    model.evaluate(model.new_sequence(), [1])
    with pytest.raises(InputError, match="the model has computed something else since these logits were asked for"):
        LATE[name](logits)


def test_rows_and_targets_that_are_not_there(model: Model) -> None:
    sequence = model.new_sequence()
    for wanted, error in (
        ("some", "wanted 'some', wanted one of all, last, none"),
        (int32(0, 2), "logits requested for rows 0 to 2, but the piece has 2 tokens"),
        (int32(-1), "logits requested for rows -1 to -1, but the piece has 2 tokens"),
    ):
        with pytest.raises(InputError, match=error):
            model.forward([(sequence, [1, 2], wanted)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"rows of type float64 and shape \(1,\), wanted one row of whole numbers"):
        model.forward([(sequence, [1, 2], np.array([0.0]))])
    logits = model.forward([(sequence, [1, 2], "all")])
    for start, stop in ((-1, 1), (1, 0), (0, 3), (2, 3)):
        with pytest.raises(InputError, match=f"rows {start} to {stop} of 2, wanted at most 32 of them"):
            logits.block(start, stop)
    with pytest.raises(InputError, match="1 targets for 2 rows of logits, wanted one per row"):
        logits.score(int32(1))
    with pytest.raises(InputError, match="token id 96, wanted one from 0 to 95"):
        logits.score(int32(1, 96))


def test_lengths_that_a_sequence_cannot_be_cut_to(model: Model) -> None:
    sequence = model.new_sequence()
    model.evaluate(sequence, [1, 2, 3])
    for length in (-1, 4):
        with pytest.raises(InputError, match=f"a sequence of 3 tokens cannot be cut to {length}"):
            sequence.truncate(length)
    with pytest.raises(TypeError, match=r"length 1.5, wanted a whole number"):
        sequence.truncate(1.5)  # type: ignore[arg-type]
    assert sequence.length == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context": "512"}, TypeError, "context '512', wanted a whole number"),
        ({"context": True}, TypeError, "context True, wanted a whole number"),
        ({"context": 512.0}, TypeError, "context 512.0, wanted a whole number"),
        ({"sequences": 0.5}, TypeError, "sequences 0.5, wanted a whole number"),
        ({"sequences": 2**62}, InputError, "a cache of .* tokens does not fit in memory; ask for a smaller context"),
        ({"batch": [1]}, TypeError, r"batch \[1\], wanted a whole number"),
        ({"batch": 0}, InputError, "batch 0, wanted at least 1"),
        ({"threads": "2"}, TypeError, "threads '2', wanted a whole number"),
        ({"threads": True}, TypeError, "threads True, wanted a whole number"),
        ({"threads": 0}, InputError, "threads 0, wanted 1 to 512"),
        ({"threads": 2**70}, InputError, "threads 1180591620717411303424, wanted 1 to 512"),
        ({"executor": ["cpu"]}, InputError, r"executor \['cpu'\], wanted one of cpu, reference"),
        ({"precision": None}, InputError, "precision None, wanted one of int8, f32"),
        ({"cache_type_k": 16}, InputError, "cache_type_k 16, wanted one of f32, f16"),
        ({"load_mode": 0}, InputError, "load_mode 0, wanted one of mmap, none, mlock"),
        ({"deterministic": "yes"}, TypeError, "deterministic 'yes', wanted True or False"),
        ({"instruction_set": "mmx"}, InputError, "instruction_set 'mmx', wanted one of .*scalar"),
        ({"observe": "all"}, TypeError, "observe 'all', wanted a function of a matrix's name"),
    ],
)
def test_options_of_a_model(path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(path, **options)


@pytest.mark.parametrize("path", [None, 7, b"model.gguf"])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(TypeError, match="wanted the path of a GGUF file"):
        load_model(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": float("nan")}, InputError, "temperature nan, wanted a number from 0"),
        ({"temperature": "0.8"}, TypeError, "temperature '0.8', wanted a number"),
        ({"temperature": None}, TypeError, "temperature None, wanted a number"),
        ({"top_k": -1}, InputError, "top_k -1, wanted a number from 0"),
        ({"top_k": 2.5}, TypeError, "top_k 2.5, wanted a whole number"),
        ({"top_p": [1]}, TypeError, r"top_p \[1\], wanted a number"),
        ({"min_p": True}, TypeError, "min_p True, wanted a number"),
        ({"seed": -1}, InputError, "seed -1, wanted at least 0"),
        ({"seed": 1.5}, TypeError, "seed 1.5, wanted a whole number"),
    ],
)
def test_options_of_a_sampler(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sampler(**options)


def test_logits_that_are_none() -> None:
    with pytest.raises(InputError, match="the logit of token 0 is nan: "):
        Sampler().sample(np.full(9, np.nan, np.float32))
    for logits in (np.zeros((1, 9), np.float32), np.empty(0, np.float32), [0.0, 1.0], None):
        with pytest.raises(TypeError, match=r"wanted one row, \(V,\)"):
            Sampler().sample(logits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tokens": -1}, InputError, "max_tokens -1, wanted at least 0"),
        ({"max_tokens": 2.0}, TypeError, "max_tokens 2.0, wanted a whole number"),
        ({"stop": "end"}, TypeError, "stop 'end', wanted a list of texts"),
        ({"stop": [1]}, TypeError, r"stop \[1\], wanted a list of texts"),
        ({"stop": None}, TypeError, "stop None, wanted a list of texts"),
    ],
)
def test_options_of_a_generation(model: Model, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(model, [1], sampler=GREEDY, **options)
    assert model.free_pages == model.setup.pages
