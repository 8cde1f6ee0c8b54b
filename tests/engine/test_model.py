"""Batches, sequences and their shared cache: whatever way tokens are fed, their logits are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.model import Model, load_model
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import f32, u32
from tests.engine import tiny_gguf

EXECUTORS = ["reference", "cpu"]

# float32 sums in another order; logits are of size 1.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_model(
        tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors()
    )


@pytest.fixture(params=EXECUTORS)
def model(path: Path, request: pytest.FixtureRequest) -> Any:
    with load(path, request.param, sequences=4) as model:
        yield model


def load(path: Path, executor: str, **options: Any) -> Model:
    return load_model(path, executor=executor, precision="f32", threads=2, **options)


def text(seed: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, tiny_gguf.VOCAB, length)


def logits_alone(model: Model, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    sequence = model.new_sequence()
    logits = model.forward([(sequence, tokens, "all")]).all()
    sequence.free()
    return logits


def test_sequences_in_one_batch_do_not_see_each_other(model: Model) -> None:
    texts = [text(1, 150), text(2, 90), text(3, 200)]
    alone = [logits_alone(model, tokens) for tokens in texts]
    sequences = [model.new_sequence() for _ in texts]
    found: list[list[NDArray[np.float32]]] = [[], [], []]
    for start in range(0, 200, 37):  # uneven pieces, in turn; some texts end before others
        live = [i for i, tokens in enumerate(texts) if start < len(tokens)]
        pieces = [(sequences[i], texts[i][start : start + 37], "all") for i in live]
        rows = model.forward(pieces).all()
        ends = np.cumsum([len(tokens) for _, tokens, _ in pieces])
        for i, part in zip(live, np.split(rows, ends[:-1]), strict=True):
            found[i].append(part)
    for parts, wanted in zip(found, alone, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("step", [1, 7, 64, 65, 299])
def test_batch_size_does_not_matter(model: Model, step: int) -> None:
    tokens = text(4, 300)
    wanted = logits_alone(model, tokens)
    sequence = model.new_sequence()
    found = [model.forward([(sequence, tokens[start : start + step], "all")]).all() for start in range(0, 300, step)]
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=TOLERANCE)


def test_evaluate_splits_a_long_prompt(path: Path) -> None:
    tokens = text(5, 400)
    with load(path, "reference", batch=64) as model:
        found = model.evaluate(model.new_sequence(), tokens)
    with load(path, "reference", batch=512) as model:
        np.testing.assert_allclose(found, logits_alone(model, tokens)[-1], atol=TOLERANCE)


def test_forks_share_the_past_and_part_after_it(model: Model) -> None:
    past, left, right = text(6, 100), text(7, 60), text(8, 60)
    trunk = model.new_sequence()
    model.evaluate(trunk, past)
    branch = trunk.fork()
    assert branch.pages == trunk.pages
    rows = model.forward([(trunk, left, "last"), (branch, right, "last")]).all()
    assert branch.pages[0] == trunk.pages[0], "a full page of the past stays shared"
    assert set(branch.pages[1:]).isdisjoint(trunk.pages[1:]), "the page both wrote into was copied"
    for row, tail in zip(rows, (left, right), strict=True):
        np.testing.assert_allclose(row, logits_alone(model, np.concatenate([past, tail]))[-1], atol=TOLERANCE)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 130])
def test_truncate_takes_tokens_back(model: Model, length: int) -> None:
    tokens, tail = text(9, 140), text(10, 50)
    sequence = model.new_sequence()
    model.evaluate(sequence, tokens)
    kept = sequence.fork()  # what the other sequence still holds must not change
    sequence.truncate(length)
    found = model.evaluate(sequence, tail)
    wanted = logits_alone(model, np.concatenate([tokens[:length], tail]))
    np.testing.assert_allclose(found, wanted[-1], atol=TOLERANCE)
    found = model.evaluate(kept, tail)
    np.testing.assert_allclose(found, logits_alone(model, np.concatenate([tokens, tail]))[-1], atol=TOLERANCE)


def test_wanted_rows(model: Model) -> None:
    tokens = text(11, 120)
    wanted = logits_alone(model, tokens)
    rows = np.array([0, 3, 117])
    pieces = [
        (model.new_sequence(), tokens, rows),
        (model.new_sequence(), tokens, "none"),
        (model.new_sequence(), tokens, "last"),
    ]
    logits = model.forward(pieces)
    assert logits.rows == 4
    np.testing.assert_allclose(logits.all(), wanted[[0, 3, 117, 119]], atol=TOLERANCE)


def test_blocks_and_scores_are_of_the_same_logits(model: Model) -> None:
    tokens = text(12, 150)
    logits = model.forward([(model.new_sequence(), tokens, "all")])
    rows = logits.all()
    blocks = [(start, block.copy()) for start, block in logits.blocks()]
    assert len(blocks) > 1, "150 rows are more than a block"
    assert [start for start, _ in blocks] == list(np.cumsum([0] + [len(block) for _, block in blocks])[:-1])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), rows)

    exponents = rows.astype(np.float64)
    scores = exponents[np.arange(149), tokens[1:]] - np.log(np.exp(exponents[:149]).sum(axis=1))
    logits = model.forward([(model.new_sequence(), tokens, np.arange(149))])
    np.testing.assert_allclose(logits.score(tokens[1:]), scores, atol=TOLERANCE)


def test_softcaps(tmp_path: Path) -> None:
    tokens = text(13, 100)

    def run(executor: str = "reference", **changes: Any) -> NDArray[np.float32]:
        path = tiny_gguf.write_model(tmp_path / "m.gguf", tiny_gguf.metadata(**changes), tiny_gguf.tensors())
        with load(path, executor) as model:
            return model.forward([(model.new_sequence(), tokens, "all")]).all()

    plain = run()
    for executor in EXECUTORS:
        capped = run(executor, final_logit_softcapping=f32(0.5))
        np.testing.assert_allclose(capped, 0.5 * np.tanh(plain / 0.5), atol=TOLERANCE)
    # Attention: a cap far above every score is none, one near 0 makes all scores equal, as a scale near 0 does.
    flat = run(attention__scale=f32(2e-9))
    assert np.abs(plain - flat).max() > 1
    np.testing.assert_allclose(run(attn_logit_softcapping=f32(1e4)), plain, atol=TOLERANCE)
    np.testing.assert_allclose(run(attn_logit_softcapping=f32(1e-6)), flat, atol=TOLERANCE)
    between = run(attn_logit_softcapping=f32(2))
    assert min(np.abs(between - plain).max(), np.abs(between - flat).max()) > 0.1
    np.testing.assert_allclose(run("cpu", attn_logit_softcapping=f32(2)), between, atol=TOLERANCE)


def test_bad_input_changes_nothing(model: Model) -> None:
    sequence = model.new_sequence()
    model.evaluate(sequence, text(14, 500))
    with pytest.raises(InputError, match="513 tokens do not fit the context of 512"):
        model.evaluate(sequence, text(15, 13))
    for token in (96, -1, 2**40, 2**64):
        with pytest.raises(InputError, match=f"token id {token}, wanted one from 0 to 95"):
            model.forward([(sequence, [1, token], "last")])
    with pytest.raises(InputError, match="no tokens"):
        model.evaluate(sequence, [])
    others = [model.new_sequence() for _ in range(4)]
    with pytest.raises(InputError, match="a batch of 600 tokens, wanted 1 to 512"):
        model.forward([(other, text(16, 150), "last") for other in others])
    for other in others[:3]:
        model.evaluate(other, text(17, 512))
    with pytest.raises(InputError, match="the cache is full"):
        model.evaluate(others[3], [1])
    assert (sequence.length, others[3].length) == (500, 0)
    others[0].free()
    tokens = np.append(text(14, 500), text(18, 12))
    found = model.evaluate(sequence, tokens[500:])
    sequence.free()
    np.testing.assert_allclose(found, logits_alone(model, tokens)[-1], atol=TOLERANCE)


def test_a_batch_that_does_not_fit_takes_no_pages(path: Path) -> None:
    with load(path, "reference", sequences=1, context=200) as model:  # 4 pages
        first, second = model.new_sequence(), model.new_sequence()
        with pytest.raises(InputError, match="the cache is full: 2 more pages of 64 tokens wanted, 1 of 4 free"):
            model.forward([(first, text(19, 150), "last"), (second, text(20, 100), "last")])
        assert (first.pages, second.pages) == ([], [])
        model.forward([(second, text(20, 200), "last")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "tpu"}, "executor 'tpu', wanted one of cpu, reference"),
        ({"context": 0}, "context 0, wanted at least 1"),
        ({"context": 513}, "tiny.gguf: context 513, but the model was made for at most 512"),
        ({"threads": 0}, "threads 0, wanted 1 to 512"),
        ({"threads": 513}, "threads 513, wanted 1 to 512"),
        ({"precision": "bf16"}, "precision 'bf16', wanted one of int8, f32"),
        ({"cache_type_k": "q8_1"}, "cache_type_k 'q8_1', wanted one of f32, f16, bf16, q8_0, q4_0"),
        ({"cache_type_v": "f8"}, "cache_type_v 'f8', wanted one of"),
        ({"cache_type_v": "q4_0"}, "layer 0: heads of 16; a cache of type q8_0 or q4_0 needs a multiple of 32"),
        ({"batch": -1}, "batch -1, wanted at least 1"),
    ],
)
def test_bad_options(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(path, **options)


def test_other_vector_types_are_decoded_at_load(path: Path, tmp_path: Path) -> None:
    """A file may store norms in 16 bits; half-precision values of these weights are exact in float32."""
    from lltool.gguf.ggml_types import GGMLType
    from lltool.gguf.reader import open_gguf
    from lltool.gguf.writer import write_gguf
    from lltool.quant.retype import retype

    target = tmp_path / "half.gguf"
    with open_gguf(path) as file:
        write_gguf(target, retype(file, lambda t: GGMLType.F16 if len(t.shape) == 1 else t.type))
    with load(target, "reference") as model:
        weight = model.program.weights["output_norm.weight"]
        values = weight.data.view(np.float32).reshape(-1)
    wanted = tiny_gguf.tensors()["output_norm.weight"]
    np.testing.assert_array_equal(values, wanted.astype(np.float16).astype(np.float32))
    assert weight.type == GGMLType.F32


def test_heads_too_large_for_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_gguf, "HEAD_DIM", 1024)
    keys = tiny_gguf.metadata(attention__key_length=u32(1024), attention__value_length=u32(1024))
    path = tiny_gguf.write_model(tmp_path / "m.gguf", keys, tiny_gguf.tensors())
    with pytest.raises(InputError, match=r"m\.gguf: layer 0: 4 heads of 1024 .* the kernels take heads of at most 576"):
        load_model(path)


def test_a_cache_too_large_for_the_machine(tmp_path: Path) -> None:
    keys = tiny_gguf.metadata(context_length=u32(2**31 - 1))
    path = tiny_gguf.write_model(tmp_path / "m.gguf", keys, tiny_gguf.tensors())
    with load_model(path, executor="reference") as model:
        assert model.context == 4096
    with pytest.raises(InputError, match="a cache of 2147483648000 tokens does not fit in memory"):
        load_model(path, executor="reference", context=2**31 - 1, sequences=1000)


@pytest.mark.parametrize("value_dim", [8, 40])
def test_values_of_another_width_than_keys(tmp_path: Path, value_dim: int) -> None:
    random = np.random.default_rng(8)
    tensors = tiny_gguf.tensors()
    for layer in range(tiny_gguf.LAYERS):
        for name, shape in (
            ("attn_v", (tiny_gguf.KV_HEADS * value_dim, tiny_gguf.WIDTH)),
            ("attn_output", (tiny_gguf.WIDTH, tiny_gguf.HEADS * value_dim)),
        ):
            tensors[f"blk.{layer}.{name}.weight"] = (random.normal(size=shape) / shape[1] ** 0.5).astype(np.float32)
    keys = tiny_gguf.metadata(attention__value_length=u32(value_dim))
    path = tiny_gguf.write_model(tmp_path / "m.gguf", keys, tensors)
    tokens = [i * 7 % 90 for i in range(150)]
    logits = []
    for executor in EXECUTORS:
        with load_model(path, executor=executor, precision="f32", threads=1, sequences=2) as model:
            trunk = model.new_sequence()
            model.evaluate(trunk, tokens[:100])
            branch = trunk.fork()  # copies half a page
            logits.append([model.evaluate(branch, tokens[100:]), model.evaluate(trunk, [5])])
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert np.ptp(logits[0]) > 1
