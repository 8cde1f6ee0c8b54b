"""Runs a model over the windows of a baseline, under the settings in which honest runs may differ."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Precision
from lltool.engine.cpu import _native
from lltool.engine.model import Model, load_model
from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.common.text import read_evaluation_text
from lltool.eval.divergence.divergence import DivergenceResult
from lltool.eval.divergence.reference_file import Reference
from lltool.eval.gate.judge import largest
from lltool.eval.scoring.lockstep import scored_tokens
from lltool.eval.search.sensitivity import pick_windows
from lltool.gguf.errors import InputError
from lltool.quant import isa

FEWEST_WINDOWS = 8  # with fewer, the standard error means little


@dataclass(frozen=True)
class RunSetting:
    """How a run computes; a setting may change the results only by rounding."""

    instruction_set: str
    batch: int = 512


@dataclass(frozen=True)
class TextRun:
    """A run over the reference's windows: means of each window, in nats or shares, and the largest divergences."""

    losses: tuple[float, ...]
    divergences: tuple[float, ...]
    agreement: tuple[float, ...]
    tail: tuple[float, ...]


def honest_settings() -> list[RunSetting]:
    """The machine's own setting first, then settings that round differently.

    These are the other instruction sets; the portable kernels, which are slow, only where there is no other set. A
    batch of 8, which rounds as one of 512 does, only where there are no other kernels at all.
    """
    own = isa.chosen()
    others = [name for name in _native.available_isas() if name != own]
    quick = [name for name in others if name != "scalar"]
    return [RunSetting(own), *(map(RunSetting, quick or others) if others else [RunSetting(own, batch=8)])]


def cut_text(tokenizer: Tokenizer, path: Path, context: int, count: int) -> NDArray[np.int32]:
    """`count` windows of a text, or as many as it has, spread evenly; raises InputError if it has too few."""
    ids = tokenizer.encode(read_evaluation_text(path))
    if len(ids) < FEWEST_WINDOWS * context:
        raise InputError(
            f"{path}: {len(ids)} tokens, wanted at least {FEWEST_WINDOWS * context} ({FEWEST_WINDOWS} windows of "
            f"{context}); give a longer text or a smaller context"
        )
    return pick_windows(ids, max(count, FEWEST_WINDOWS), context, tokenizer.bos if tokenizer.add_bos else None)


def load(
    path: Path,
    setting: RunSetting,
    context: int,
    *,
    precision: Precision = "int8",
    threads: int | None = None,
    sequences: int = 1,
) -> Model:
    """Loads a model with room for `sequences` of `context` tokens, or for as many as a batch holds."""
    return load_model(
        path,
        context=context,
        sequences=max(sequences, setting.batch // context),
        batch=setting.batch,
        threads=threads,
        precision=precision,
        deterministic=True,
        instruction_set=setting.instruction_set,
    )


def text_run_of(result: DivergenceResult) -> TextRun:
    def by_window(values: NDArray[np.generic]) -> tuple[float, ...]:
        return _short(values.reshape(len(result.windows), -1).mean(axis=1))

    return TextRun(
        by_window(-result.log_probs),
        by_window(result.tokens),
        by_window(result.base_top == result.top),
        _short(largest(result.tokens)),
    )


def _short(values: NDArray[np.floating]) -> tuple[float, ...]:
    """The values with eight significant digits, which are exact enough and short in JSON."""
    return tuple(float(f"{value:.8g}") for value in values)


def first_windows(reference: Reference, count: int) -> Reference:
    """A reference of the first `count` windows only."""
    rows = count * scored_tokens(reference.context)
    return replace(
        reference,
        windows=reference.windows[:count],
        ids=reference.ids[:rows],
        log_probs=reference.log_probs[:rows],
        tails=reference.tails[:rows],
    )


def rounding_of(model: Model) -> float:
    """A divergence in nats that float32 sums in another order stay below.

    A sum of n terms is off by sqrt(n) roundings of 2^-24, and the errors of all matrices on a token's way add up like a
    random walk. Logits, of a size of 20 to 30, are off by that fraction, and the divergence is half the square of it.
    """
    columns = [w.columns for w in model.program.weights.values() if len(w.shape) == 2]
    return 0.5 * (30 * 2.0**-24) ** 2 * sum(columns)
