"""The worst positions: which they are, their text, and the tokens that both models expected there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.divergence.divergence import DivergenceResult, divergence
from lltool.eval.divergence.logits_file import open_logits_file, write_logits_file
from lltool.eval.divergence.reference_file import open_reference, write_reference
from lltool.eval.divergence.worst import format_worst, worst_positions
from tests.eval.tiny_text_model import random_text, write_text_model

TEXT = random_text(4 * 50, seed=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Model]]:
    folder = tmp_path_factory.mktemp("models")
    paths = [write_text_model(folder / f"{seed}.gguf", seed=seed) for seed in (0, 1)]
    with load_model(paths[0], context=50, batch=30) as first, load_model(paths[1], context=50, batch=30) as second:
        yield first, second


@pytest.fixture(scope="module")
def result(models: tuple[Model, Model]) -> DivergenceResult:
    return divergence(*models, TEXT, context=50)


def test_the_worst_come_first_with_their_text(models: tuple[Model, Model], result: DivergenceResult) -> None:
    found = worst_positions(result, *models, 3, guesses=4)
    order = np.argsort(-result.tokens)[:3]
    assert [position.divergence for position in found] == result.tokens[order].tolist()
    for place, position in zip(order, found, strict=True):
        at = position.window * 50 + position.position  # in the text: a token is a character
        assert (position.window, position.position) == (place // 24, 26 + place % 24)
        assert position.expected == TEXT[at]
        assert position.context == TEXT[max(position.window * 50, at - 32) : at]
        assert (position.base_probability, position.probability) == pytest.approx(
            (np.exp(result.base_log_probs[place]), np.exp(result.log_probs[place]))
        )
        for guesses, top, column in (
            (position.base_guesses, result.base_top[place], 5),
            (position.guesses, result.top[place], 6),
        ):
            assert len(guesses) == 4
            assert guesses[0].token == top
            # other batch sizes round activations to 8 bits in the same way, but add floats in another order
            assert guesses[0].probability == pytest.approx(np.exp(result.table[place, column]), rel=1e-4)
            shares = [guess.probability for guess in guesses]
            assert shares == sorted(shares, reverse=True)
    assert "1. KLD" in format_worst(found)
    assert repr(found[0].context) in format_worst(found)


def test_files_give_the_same_as_the_base(models: tuple[Model, Model], result: DivergenceResult, tmp_path: Path) -> None:
    base, model = models
    write_reference(tmp_path / "r", base, result.windows, top=12)
    write_logits_file(tmp_path / "l", base, base.tokenizer.encode(TEXT), context=50)
    expected = worst_positions(result, base, model, 2)
    for file in (open_reference(tmp_path / "r"), open_logits_file(tmp_path / "l")):
        for one, other in zip(expected, worst_positions(result, file, model, 2), strict=True):
            assert [guess.token for guess in one.base_guesses] == [guess.token for guess in other.base_guesses]
            shares = [[guess.probability for guess in position.base_guesses] for position in (one, other)]
            assert shares[0] == pytest.approx(shares[1], rel=2e-4)  # 16 bits: a step of ln P is 1.2e-4 at half a step
            assert other.guesses == one.guesses
