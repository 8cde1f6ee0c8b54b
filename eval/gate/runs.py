"""One run of a model over what a baseline holds, and the settings that honest runs may differ in."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine import _native
from lltool.engine.batch import Precision
from lltool.engine.model import Model, load_model
from lltool.engine.tokenizer import Tokenizer
from lltool.eval.divergence import DivergenceResult
from lltool.eval.gate.judge import largest
from lltool.eval.lockstep import scored_tokens
from lltool.eval.reference_file import Reference
from lltool.eval.sensitivity import pick_windows
from lltool.eval.text import read_text
from lltool.gguf.errors import InputError
from lltool.quant import isa

FEWEST_WINDOWS = 8  # for a standard error worth its name


@dataclass(frozen=True)
class Setting:
    """How a run computes; none of it may change what comes out, but for rounding."""

    instruction_set: str
    batch: int = 512


@dataclass(frozen=True)
class TextRun:
    """A run over the reference's windows: means of each window in nats, and the largest divergences."""

    losses: tuple[float, ...]
    divergences: tuple[float, ...]
    agreement: tuple[float, ...]
    tail: tuple[float, ...]


def honest_settings() -> list[Setting]:
    """The first is the machine's own; the others round differently.

    The portable kernels are too slow to take part where there are others; a batch of 8 has kernels of its own.
    """
    own = isa.chosen()
    others = [name for name in _native.available_isas() if name not in (own, "scalar")]
    return [Setting(own), *map(Setting, others)] if others else [Setting(own), Setting(own, batch=8)]


def cut_text(tokenizer: Tokenizer, path: Path, context: int, count: int) -> NDArray[np.int32]:
    """`count` windows of a text, or as many as it has, spread evenly; raises InputError where it has too few."""
    ids = tokenizer.encode(read_text(path))
    if len(ids) < FEWEST_WINDOWS * context:
        raise InputError(
            f"{path}: {len(ids)} tokens, wanted at least {FEWEST_WINDOWS * context} ({FEWEST_WINDOWS} windows of "
            f"{context}); give a longer text or a smaller context"
        )
    return pick_windows(ids, max(count, FEWEST_WINDOWS), context, tokenizer.bos if tokenizer.add_bos else None)


def load(
    path: Path,
    setting: Setting,
    context: int,
    *,
    precision: Precision = "int8",
    threads: int | None = None,
    sequences: int = 1,
) -> Model:
    """With room for `sequences` of `context` tokens, or as many as a batch takes."""
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


def summarize(result: DivergenceResult) -> TextRun:
    def by_window(values: NDArray[np.generic]) -> tuple[float, ...]:
        return _short(values.reshape(len(result.windows), -1).mean(axis=1))

    return TextRun(
        by_window(-result.log_probs),
        by_window(result.tokens),
        by_window(result.base_top == result.top),
        _short(largest(result.tokens)),
    )


def _short(values: NDArray[np.floating]) -> tuple[float, ...]:
    """As exact as needed, in few characters."""
    return tuple(float(f"{value:.8g}") for value in values)


def first_windows(reference: Reference, count: int) -> Reference:
    """The reference of its first `count` windows."""
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

    Of n terms a sum is off by sqrt(n) roundings of 2^-24; that of all matrices on a token's way adds up like a random
    walk; logits, of a size of 20 to 30, are off by that fraction, and a divergence is half the square of it.
    """
    columns = [w.columns for w in model.program.weights.values() if len(w.shape) == 2]
    return 0.5 * (30 * 2.0**-24) ** 2 * sum(columns)
