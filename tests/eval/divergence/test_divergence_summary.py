"""The figures of a divergence against llama-perplexity's formulas, and the lines against those it printed."""

import re
from math import exp, sqrt

import numpy as np
import pytest

from lltool.eval.divergence.divergence import DivergenceResult
from lltool.eval.divergence.summary import RUNNING_HEADER, report_lines, running_line, summarize_divergence
from tests.conftest import GoldenFile


def made_result(windows: int = 6, context: int = 43, seed: int = 0) -> DivergenceResult:
    """Losses of a text that two models share, each with errors of its own."""
    random = np.random.default_rng(seed)
    count = windows * (context - 1 - context // 2)
    losses = random.gamma(2, 1.5, count)
    table = np.zeros((count, 7))
    table[:, 0] = random.gamma(0.5, 0.1, count)
    table[:, 1], table[:, 2] = -losses, -(losses + random.normal(0.05, 0.2, count))
    table[:, 3:5] = random.integers(0, 3, (count, 2))
    return DivergenceResult(np.zeros((windows, context), np.int32), table)


def mean_and_uncertainty(values: np.ndarray) -> tuple[float, float]:
    """As tools/perplexity of llama.cpp, from sums."""
    count, total, squares = len(values), values.sum(), (values**2).sum()
    mean = total / count
    return mean, sqrt((squares / count - mean * mean) / (count - 1))


def test_figures_equal_llama_perplexitys_formulas() -> None:
    result = made_result()
    kld, base, other = result.tokens, -result.base_log_probs, -result.log_probs
    count = len(kld)
    mean, error = mean_and_uncertainty(other)
    base_mean, base_error = mean_and_uncertainty(base)
    covariance = ((base * other).sum() / count - base_mean * mean) / (count - 1)
    found = summarize_divergence(result)
    assert found.scored == count == 6 * 21

    def close(figure: object, value: float, uncertainty: float) -> None:
        assert vars(figure) == pytest.approx({"value": value, "error": uncertainty}, rel=1e-9)

    close(found.perplexity, exp(mean), exp(mean) * error)
    close(found.base_perplexity, exp(base_mean), exp(base_mean) * base_error)
    assert found.correlation == pytest.approx(covariance / (error * base_error))
    paired = sqrt(error**2 + base_error**2 - 2 * covariance)
    assert paired < 0.5 * error  # the text's own variation cancels
    close(found.log_ratio, mean - base_mean, paired)
    close(found.ratio, exp(mean - base_mean), exp(mean - base_mean) * paired)
    spread = (exp(mean) * error) ** 2 + (exp(base_mean) * base_error) ** 2 - 2 * covariance * exp(mean + base_mean)
    close(found.difference, exp(mean) - exp(base_mean), sqrt(spread))
    close(found.divergence, *mean_and_uncertainty(kld))
    change = np.exp(-other) - np.exp(-base)
    close(found.change, *mean_and_uncertainty(change))
    square, square_error = mean_and_uncertainty(change**2)
    close(found.change_rms, sqrt(square), 0.5 / sqrt(square) * square_error)
    share = (result.base_top == result.top).mean()
    close(found.same_top, share, sqrt(share * (1 - share) / (count - 1)))
    ordered = np.sort(kld)
    place = 0.95 * (count - 1)
    low = int(place)
    expected = (1 - place + low) * ordered[low] + (place - low) * ordered[low + 1]
    assert found.divergence_percentiles[95] == pytest.approx(expected)
    assert found.divergence_percentiles[50] == pytest.approx((ordered[count // 2] + ordered[count // 2 - 1]) / 2)
    assert (found.change_percentiles[0], found.change_percentiles[100]) == (change.min(), change.max())


def test_several_texts_are_summarized_as_one() -> None:
    first, second = made_result(seed=1), made_result(windows=3, seed=2)
    both = DivergenceResult(np.zeros((9, 43), np.int32), np.concatenate([first.table, second.table]))
    assert summarize_divergence(first, second) == summarize_divergence(both)
    assert np.array_equal(both.first(6).table, first.table)


def test_a_model_against_itself() -> None:
    result = made_result()
    result.table[:, 0], result.table[:, 2], result.table[:, 4] = 0, result.table[:, 1], result.table[:, 3]
    found = summarize_divergence(result)
    assert (found.ratio.value, found.ratio.error) == pytest.approx((1, 0), abs=1e-7)
    assert (found.change_rms.value, found.change_rms.error) == (0, 0)
    assert (found.same_top.value, found.same_top.error, found.divergence.value) == (1, 0, 0)
    assert len(list(report_lines(found))) == 39


def test_lines_are_llama_perplexitys(golden_file: GoldenFile) -> None:
    """Everything it printed except for the digits."""
    printed = golden_file("perplexity/kld_offgrid_Q6_K_vs_f16.txt").read_text().splitlines()
    begin = printed.index(RUNNING_HEADER)
    result = made_result()
    assert without_digits(running_line(3, result.first(3))) == without_digits(printed[begin + 3])
    section = printed[printed.index("====== Perplexity statistics ======") :]
    found = list(report_lines(summarize_divergence(result)))
    assert [without_digits(line) for line in found] == [without_digits(line) for line in section[: len(found)]]
    assert not any(section[len(found) :])


def without_digits(line: str) -> str:
    """The text with each number replaced by its width and decimals."""
    name, colon, figures = line.partition(": ")
    if not colon:
        name, figures = "", line
    return name + colon + re.sub(r" *-?\d+\.(\d+)", lambda m: f"<{len(m[0])}.{len(m[1])}>", figures)
