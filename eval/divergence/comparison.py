"""Compares a model with a base on a text; the base is a model or one of the files that stand in for a model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lltool.engine.model import Model, load_model
from lltool.eval.common.tables import format_table
from lltool.eval.divergence.divergence import DivergenceProgress, DivergenceResult, divergence
from lltool.eval.divergence.logits_file import MAGIC, LogitsFile, compare_with_file, open_logits_file, windows_of
from lltool.eval.divergence.reference_file import Reference, check_reference, compare_with_reference, open_reference
from lltool.eval.divergence.summary import summarize_divergence
from lltool.eval.divergence.worst import Base, Position
from lltool.eval.scoring import perplexity_report
from lltool.eval.scoring.perplexity import Method, bos_of, cut_windows
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.names import describe_os_error
from lltool.gguf.regular_file import open_regular

_ZIP = b"PK"
_KINDS = {Model: "model", Reference: "reference file, likely tokens and tail", LogitsFile: "logits file, 16 bits"}


def open_base(path: Path, **settings: Any) -> Base:
    """Opens a base: a GGUF model, loaded with `settings` as in `load_model`; a reference file; or a logits file."""
    try:
        with open_regular(path) as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    if start == MAGIC:
        return open_logits_file(path)
    if start.startswith(_ZIP):
        return open_reference(path)
    return load_model(path, **settings)


def compare_text(
    base: Base,
    model: Model,
    text: str | Sequence[int] | None,
    *,
    context: int = 512,
    chunks: int | None = None,
    name: str = "text",
    progress: DivergenceProgress | None = None,
) -> DivergenceResult:
    """The divergence of `model` from `base` on a text (or token ids) or, without one, on the text of the base's file.

    A file has its own context. Raises InputError for a base model without a text, and for a file of another text.
    """
    if isinstance(base, Model):
        if text is None:
            raise InputError(f"{base.file.path}: a model as base needs a text; give one with -f")
        return divergence(base, model, text, context=context, chunks=chunks, name=name, progress=progress)
    base = base.first(chunks)
    if isinstance(base, Reference):
        check_reference(base, model)
        windows = base.windows
    else:
        windows = windows_of(base, model)
    if text is not None:
        ids = Method(context=base.context).encode(model.tokenizer, text) if isinstance(text, str) else text
        if not np.array_equal(windows, cut_windows(ids, base.context, bos_of(model), name)[: len(windows)]):
            raise InputError(
                f"{base.path}: was made from another text than {name}; give the text that begins with its "
                f"{len(windows)} chunks of {base.context} tokens, or none"
            )
    if isinstance(base, LogitsFile):
        return compare_with_file(base, model, progress)
    return compare_with_reference(base, model, progress)


def to_record(
    result: DivergenceResult, base: Base, model: Model, text: Path | None, worst: Sequence[Position] = ()
) -> dict[str, Any]:
    """All figures of a text with their origin; errors are standard errors, Δp is a fraction of 1."""
    s = summarize_divergence(result)
    context = result.windows.shape[1]
    paths = base.file.paths if isinstance(base, Model) else [base.path]
    return {
        **perplexity_report.describe_run(model),
        "reference": str(paths[0]),
        "reference_kind": _KINDS[type(base)],
        "reference_sha256": sha256_of(paths),
        "text": str(text or _text_of(base)),
        "text_sha256": None if text is None else sha256_of([text]),
        "method": str(Method(context=context)),
        "context": context,
        "windows": len(result.windows),
        "scored_tokens": s.scored,
        "perplexity": s.perplexity.value,
        "standard_error": s.perplexity.error,
        "base_perplexity": s.base_perplexity.value,
        "base_standard_error": s.base_perplexity.error,
        "correlation": s.correlation,
        "log_ratio": asdict(s.log_ratio),
        "ratio": asdict(s.ratio),
        "difference": asdict(s.difference),
        "divergence": {
            "mean": s.divergence.value,
            "error": s.divergence.error,
            "same_top": s.same_top.value,
            "same_top_error": s.same_top.error,
            "percentiles": s.divergence_percentiles,
        },
        "delta_p": {
            "mean": s.change.value,
            "error": s.change.error,
            "rms": s.change_rms.value,
            "rms_error": s.change_rms.error,
            "percentiles": s.change_percentiles,
        },
        "worst": [asdict(position) for position in worst],
    }


_COLUMNS = ("text", "scored", "PPL(Q)", "PPL(base)", "ratio", "±", "KLD", "±", "99.9 % KLD", "RMS Δp", "same top", "±")


def _text_of(base: Base) -> str | Path:
    """The text that a file was made from, as far as the file names it."""
    match base:
        case Model():
            return base.file.path
        case Reference():
            return str(base.metadata.get("text", base.path))
        case LogitsFile():
            return base.path


def format_texts(results: Mapping[str, DivergenceResult]) -> str:
    """A Markdown table with a line for each text; several texts also get a line for all their tokens together."""
    rows = [_cells(name, result) for name, result in results.items()]
    if len(results) > 1:
        rows.append(_cells("all texts", *results.values()))
    return format_table(list(_COLUMNS), rows)


def format_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line for each record; nested values get names like divergence_mean."""
    return perplexity_report.format_csv([_flatten(record) for record in records])


def _flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}_")
        elif not isinstance(value, list):
            flat[f"{prefix}{key}"] = value
    return flat


def _cells(name: str, *results: DivergenceResult) -> list[str]:
    s = summarize_divergence(*results)
    return [
        name,
        str(s.scored),
        f"{s.perplexity.value:.4f}",
        f"{s.base_perplexity.value:.4f}",
        f"{s.ratio.value:.5f}",
        f"{s.ratio.error:.5f}",
        f"{s.divergence.value:.6f}",
        f"{s.divergence.error:.6f}",
        f"{s.divergence_percentiles[99.9]:.4f}",
        f"{100 * s.change_rms.value:.3f} %",
        f"{100 * s.same_top.value:.3f} %",
        f"{100 * s.same_top.error:.3f} %",
    ]
