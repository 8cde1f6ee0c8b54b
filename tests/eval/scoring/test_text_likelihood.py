"""Log-likelihoods of texts against transformers on a tiny checkpoint; where a context is split from a continuation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.model import Model, load_model
from lltool.eval.scoring.likelihood import cut_rolling, encode_pair, loglikelihoods, rolling_loglikelihoods
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean, u32
from tests.eval.tiny_text_model import random_text, write_text_model
from tests.tiny_checkpoints import make_checkpoint
from tests.tiny_tokenizers import TEXT

CONTEXT = 128
PAIRS = [
    (TEXT[:200], TEXT[200:230]),
    (TEXT[:200], " and more"),
    (TEXT[:150] + "  ", "reasons"),  # spaces at the end of the context
    ("", "The quick"),
    ("The dog", ", the dog"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any, Any]:
    """The same weights in both engines, and the checkpoint's own tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lltool.quant.convert.conversion import convert

    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint("llama", folder)
    path = convert(folder, folder / "model.gguf", outtype="f32")
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = load_model(path, context=CONTEXT, sequences=3, precision="f32", threads=1)
    return model, oracle, AutoTokenizer.from_pretrained(folder)


def by_transformers(oracle: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    import torch

    with torch.no_grad():
        logits: NDArray[np.float64] = oracle(torch.tensor([context + continuation])).logits[0].double().numpy()
    rows = logits[len(context) - 1 : -1]
    logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return float(logprobs[np.arange(len(continuation)), continuation].sum()), bool(
        (rows.argmax(axis=1) == continuation).all()
    )


def test_equal_transformers(checkpoint: tuple[Model, Any, Any]) -> None:
    model, oracle, tokenizer = checkpoint
    greedy = _greedy(oracle, tokenizer)
    found = loglikelihoods(model, [*PAIRS, greedy])
    for (context, continuation), likelihood in zip([*PAIRS, greedy], found, strict=True):
        stem = tokenizer(context.rstrip()).input_ids or [tokenizer.bos_token_id]
        whole = tokenizer(context + continuation).input_ids
        following = whole[len(stem) :] if context else [id for id in whole if id != tokenizer.bos_token_id]
        logprob, is_greedy = by_transformers(oracle, stem, following)
        assert likelihood.logprob == pytest.approx(logprob, abs=2e-4)  # float32 sums in another order
        assert (likelihood.is_greedy, likelihood.tokens) == (is_greedy, len(following))
    assert found[-1].is_greedy


def _greedy(oracle: Any, tokenizer: Any) -> tuple[str, str]:
    """A context and the model's most probable next token, among the tokens that are whole characters."""
    import torch

    for stop in range(40, len(TEXT)):
        context = TEXT[:stop].rstrip()
        ids = tokenizer(context).input_ids
        with torch.no_grad():
            best = int(oracle(torch.tensor([ids])).logits[0, -1].argmax())
        following = tokenizer.decode([best])
        if following.isalnum() and tokenizer(context + following).input_ids == [*ids, best]:
            return context, following
    raise AssertionError("no such context")


def test_rolling_predicts_each_token_of_a_long_text_once(checkpoint: tuple[Model, Any, Any]) -> None:
    model, oracle, tokenizer = checkpoint
    text = TEXT + TEXT
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > 2 * CONTEXT
    begin, total = tokenizer.bos_token_id, 0.0
    for start in range(0, len(ids), CONTEXT):
        stop = min(start + CONTEXT, len(ids))
        window = [begin, *ids][max(0, stop - CONTEXT) : stop + 1]  # the last one reaches back
        total += by_transformers(oracle, window[: len(window) - (stop - start)], ids[start:stop])[0]
    first, second = rolling_loglikelihoods(model, [text, "The quick"])
    assert first.logprob == pytest.approx(total, rel=1e-5)
    assert first.tokens == len(ids)
    assert second.logprob == pytest.approx(loglikelihoods(model, [("", "The quick")])[0].logprob, abs=1e-5)


def test_an_empty_text_has_no_tokens(checkpoint: tuple[Model, Any, Any]) -> None:
    (found,) = rolling_loglikelihoods(checkpoint[0], [""])
    assert (found.logprob, found.is_greedy, found.tokens) == (0, True, 0)


@pytest.mark.extra
@pytest.mark.parametrize(("length", "context"), [(1, 4), (4, 4), (5, 4), (9, 4), (12, 4), (10, 1)])
def test_windows_are_those_of_lm_eval(length: int, context: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    ids = list(range(10, 10 + length))
    expected = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 7, context, 1))
    assert cut_rolling(ids, 7, context) == [(list(before), list(after)) for before, after in expected]


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Model]:
    keys = {"tokenizer.ggml.add_bos_token": boolean(True), "tokenizer.ggml.bos_token_id": u32(0)}
    with load_model(write_text_model(tmp_path / "tiny.gguf", **keys), context=64, precision="f32") as model:
        yield model


def test_pairs_are_split_as_in_lm_eval(tiny: Model) -> None:
    ids = tiny.tokenizer.encode
    assert encode_pair(tiny, "ab", "cd") == (ids("ab"), ids("cd", add_special=False))
    assert encode_pair(tiny, "ab \n", "cd") == (ids("ab"), ids(" \ncd", add_special=False))
    assert encode_pair(tiny, "", "cd") == ([0], ids("cd", add_special=False))
    assert encode_pair(tiny, "  ", "cd") == ([0], ids(" cd", add_special=False))  # token 0 is the space itself
    assert ids("ab")[0] == 0


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("ab", ""), "continuation '' after 'ab': it has no tokens of its own"),
        (("a" * 60, "b" * 10), "a continuation of 10 tokens after 61, but the model was loaded for 64"),
    ],
)
def test_bad_pairs_are_named(tiny: Model, pair: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loglikelihoods(tiny, [pair])


def test_progress_reaches_the_number_of_pairs(tiny: Model) -> None:
    seen: list[tuple[int, int]] = []
    pairs = [(random_text(20, seed), "x") for seed in (1, 1, 2)]
    loglikelihoods(tiny, pairs, progress=lambda done, total: seen.append((done, total)))
    assert (seen[-1], len(seen)) == ((3, 3), 2)
