"""Reports of perplexities: JSON records, CSV, a Markdown table, and a file with each token's loss."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import fsum, hypot
from pathlib import Path
from typing import Any

import numpy as np

from lltool import __version__
from lltool.engine.cpu.tuning import cpu_name
from lltool.engine.model import Model
from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.common.tables import format_table
from lltool.eval.scoring.perplexity import Estimate, PerplexityResult, pool
from lltool.gguf.digest import sha256_of
from lltool.gguf.whole_file import whole_file

Results = Mapping[Path, PerplexityResult]  # by text


def describe_run(model: Model) -> dict[str, Any]:
    """The tool, model, settings and processor of an evaluation, as a flat record."""
    return {
        "tool": f"lltool {__version__}",
        "test_time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "model": str(model.file.path),
        "model_sha256": sha256_of(model.file.paths),
        "model_bytes": sum(path.stat().st_size for path in model.file.paths),
        "precision": model.precision,
        "cache_type_k": model.setup.cache_type_k,
        "cache_type_v": model.setup.cache_type_v,
        "threads": model.threads,
        "batch": model.batch,
        "cpu": cpu_name(),
    }


def to_records(results: Results, model: Model, seconds: Iterable[float]) -> list[dict[str, Any]]:
    """A flat record for each text; `seconds` are the times that the texts took."""
    run = describe_run(model)
    return [
        {
            **run,
            "text": str(path),
            "text_sha256": sha256_of([path]),
            "method": str(result.method),
            "method_name": result.method.name,
            "context": result.method.context,
            "stride": result.method.hop,
            "score": result.method.score if result.method.name == "llama" else None,
            "windows": len(result.running),
            "tokens": result.length,
            "scored_tokens": result.scored,
            "scored_bytes": result.bytes,
            "scored_words": result.words,
            "perplexity": result.perplexity,
            "standard_error": result.error,
            "bits_per_byte": result.bits_per_byte,
            "bits_per_word": result.bits_per_word,
            "seconds": spent,
            "running": result.running,
        }
        for (path, result), spent in zip(results.items(), seconds, strict=True)
    ]


def format_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line for each record, without the running values."""
    text = io.StringIO()
    titles = [title for title in records[0] if title != "running"]
    writer = csv.DictWriter(text, titles, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")


def format_texts(results: Results) -> str:
    """A Markdown table with a line for each text; several texts also get a line for all tokens and one for the mean."""
    rows = [[str(path), str(result.length), *_cells(result)] for path, result in results.items()]
    if len(results) > 1:
        found = list(results.values())
        rows.append(["all texts", str(sum(result.length for result in found)), *_cells(pool(found))])
        rows.append(["mean of texts", "", "", *_mean_cells(found)])
    return format_table(["text", "tokens", "scored", "PPL", "±", "bits/byte", "bits/word"], rows)


def format_estimate(result: Estimate) -> str:
    """llama-perplexity's last line, and a line with bits per byte and per word."""
    return (
        f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.error:.5f}\n"
        f"{result.bits_per_byte:.4f} bits per byte, {result.bits_per_word:.4f} bits per word "
        f"({result.scored} scored tokens are {result.bytes} bytes, {result.words} words)"
    )


def _cells(result: Estimate) -> list[str]:
    bits = [f"{result.bits_per_byte:.4f}", f"{result.bits_per_word:.4f}"]
    return [str(result.scored), f"{result.perplexity:.4f}", f"{result.error:.4f}", *bits]


def _mean_cells(results: Sequence[Estimate]) -> list[str]:
    columns = zip(*((r.perplexity, r.bits_per_byte, r.bits_per_word) for r in results), strict=True)
    perplexity, *bits = (f"{fsum(column) / len(results):.4f}" for column in columns)
    return [perplexity, f"{hypot(*(r.error for r in results)) / len(results):.4f}", *bits]


def write_losses(path: Path, results: Results, tokenizer: Tokenizer) -> None:
    """Writes each scored token's natural log-probability to a .csv file or, as a structured array, to a .npy file.

    `file` is the text's number, `position` the token's index in the text, `text` the token's text (in .npy its bytes).
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, _array(list(results.values()), tokenizer))
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["file", "position", "token", "log_prob", "text"])
            for number, result in enumerate(results.values()):
                pieces = [tokenizer.piece(id).decode("utf-8", "backslashreplace") for id in result.losses.tokens]
                columns = (
                    result.losses.positions,
                    result.losses.tokens,
                    map(repr, result.losses.log_probs.tolist()),
                )
                writer.writerows(zip([number] * len(pieces), *columns, pieces, strict=True))
            text.flush()


def _array(results: Iterable[PerplexityResult], tokenizer: Tokenizer) -> Any:
    parts = []
    for number, result in enumerate(results):
        pieces = np.array([tokenizer.piece(id) for id in result.losses.tokens])
        fields = [("file", "i4"), ("position", "i8"), ("token", "i4"), ("log_prob", "f8"), ("text", pieces.dtype)]
        part = np.empty(len(pieces), fields)
        part["file"], part["text"] = number, pieces
        part["position"], part["token"] = result.losses.positions, result.losses.tokens
        part["log_prob"] = result.losses.log_probs
        parts.append(part)
    return np.concatenate(parts)
