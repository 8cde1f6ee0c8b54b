"""The regression check: compares a model's results with a baseline; judge.py decides when a measure fails."""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool import __version__
from lltool.engine.cpu.threads import default_threads
from lltool.engine.cpu.tuning import cpu_name
from lltool.engine.text.tokenizer import read_tokenizer
from lltool.eval.common.steps import Steps, TitledProgress
from lltool.eval.common.tables import format_table
from lltool.eval.divergence.divergence import DivergenceResult
from lltool.eval.divergence.reference_file import Reference, compare_with_reference
from lltool.eval.gate.baseline import Baseline, ModelFacts, check_model, describe_model, read_baseline
from lltool.eval.gate.judge import (
    Judgement,
    judge_count,
    judge_exact,
    judge_mean,
    judge_rounding,
    judge_speed,
    judge_tail,
)
from lltool.eval.gate.prompts import Followed, encode_prompts, follow
from lltool.eval.gate.runs import RunSetting, cut_text, first_windows, load, text_run_of
from lltool.eval.gate.speed import Speed
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf
from lltool.quant import isa

TEXT, PROMPTS, ANSWERS, FLIPS, EXACT = (
    "tokens of the text",
    "prompts",
    "KL of answers",
    "greedy flips",
    "mean KL, float32",
)


@dataclass(frozen=True)
class GateVerdict:
    """The measures, a diagnosis of those that failed, notes on other changes, and the provenance of the check."""

    rows: tuple[Judgement, ...]
    diagnosis: str
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        return not any(row.failed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        result = {"passed": self.passed, "diagnosis": self.diagnosis, "notes": self.notes, "measures": rows}
        return {**result, **self.provenance}


def check(
    path: Path,
    *,
    model_path: Path | None = None,
    text_path: Path | None = None,
    threads: int | None = None,
    batch: int = 512,
    gate_speed: bool = False,
    progress: TitledProgress | None = None,
) -> GateVerdict:
    """Compares a model (by default the file that was recorded) with the baseline in `path`.

    Raises InputError for a damaged baseline and for one of another model, vocabulary or text.
    """
    baseline, reference = read_baseline(path)
    model_path, text_path = model_path or Path(baseline.model.path), text_path or Path(baseline.text.path)
    _check_text(path, baseline, text_path)
    with open_gguf(model_path) as file:
        tokenizer = read_tokenizer(file)
        facts = describe_model(file, tokenizer)
        check_model(path, baseline, facts)
        windows = cut_text(tokenizer, text_path, reference.context, len(reference.windows))
        prompts = encode_prompts(file.metadata, tokenizer, [answer.messages for answer in baseline.answers])

    asked = [ids or answer.prompt for ids, answer in zip(prompts, baseline.answers, strict=True)]
    room = max(
        reference.context,
        *(len(ids) + len(answer.tokens) for ids, answer in zip(asked, baseline.answers, strict=True)),
    )
    setting, speed = RunSetting(isa.chosen(), batch), Speed(threads or default_threads())
    steps = Steps(progress, 3)
    steps.begin("in 8 bits")
    with load(model_path, setting, room, threads=threads) as model:
        speed.sample(model)
        result = compare_with_reference(reference, model, steps.inside)
        steps.begin("answers")
        followed = [follow(model, ids, answer) for ids, answer in zip(asked, baseline.answers, strict=True)]
        speed.sample(model)
    few = first_windows(reference, baseline.exact.windows)
    steps.begin("in float32")
    with load(model_path, setting, room, precision="f32", threads=threads) as model:
        exact = compare_with_reference(few, model, steps.inside)
    steps.end()

    rows = (
        judge_exact(TEXT, _differing(windows, reference), windows.size),
        judge_exact(
            PROMPTS,
            sum(ids is None or tuple(ids) != a.prompt for ids, a in zip(prompts, baseline.answers, strict=True)),
            len(prompts),
        ),
        *_judge_text(baseline, result),
        *_judge_answers(baseline, followed),
        judge_rounding(
            EXACT,
            [run.divergences for run in baseline.exact.runs],
            text_run_of(exact).divergences,
            baseline.rounding,
        ),
        *_judge_speed(baseline.speed, speed, gate_speed and speed.threads == baseline.speed.threads),
    )
    failed = {row.measure for row in rows if row.failed}
    notes = _notes(baseline, facts, speed.threads)
    method = reference.metadata.get("method")
    provenance = {
        "tool": f"lltool {__version__}",
        "method": f"{len(windows)} {method}; {len(asked)} prompts, teacher-forced with the recorded answers",
        "baseline": str(path),
        "baseline_tool": baseline.tool,
        "model": str(model_path),
        "model_sha256": facts.sha256,
        "text": str(text_path),
        "text_sha256": baseline.text.sha256,
        "cpu": cpu_name(),
        "instruction_set": setting.instruction_set,
        "threads": speed.threads,
        "batch": batch,
    }
    return GateVerdict(rows, _diagnose(failed), notes, provenance)


def _check_text(path: Path, baseline: Baseline, text_path: Path) -> None:
    if not text_path.exists():
        raise InputError(f"{text_path}: the text of {path} does not exist; name its file with -f")
    if (found := sha256_of([text_path])) != baseline.text.sha256:
        raise InputError(
            f"{text_path}: sha256 {found[:12]}, but {path} was recorded on a text of {baseline.text.sha256[:12]}; "
            f"use that text ({baseline.text.path}) or record a new baseline"
        )


def _notes(baseline: Baseline, facts: ModelFacts, threads: int) -> tuple[str, ...]:
    notes = []
    if facts.sha256 != baseline.model.sha256:
        notes.append(f"{facts.path} is not the file that was recorded: the check includes its changes")
    if cpu_name() != baseline.cpu:
        notes.append(f"recorded on {baseline.cpu}, checked on {cpu_name()}: speeds are only roughly comparable")
    if threads != baseline.speed.threads:
        recorded = baseline.speed.threads
        notes.append(f"recorded with {recorded} threads, checked with {threads}: speeds are not comparable")
    return tuple(notes)


def format_verdict(verdict: GateVerdict) -> str:
    """The measures as a table, with the notes and the diagnosis below it."""
    titles = ("measure", "baseline", "now", "difference", "± error", "limit", "verdict")
    cells = [
        (
            row.measure,
            f"{row.baseline:.4g}",
            f"{row.now:.4g}",
            f"{row.difference:+.2g}" if row.difference else "0",
            "" if row.error is None else f"{row.error:.2g}",
            "" if row.limit is None else f"{row.limit:+.2g}" if row.limit else "0",
            row.verdict,
        )
        for row in verdict.rows
    ]
    lines = [f"note: {note}" for note in verdict.notes]
    return "\n".join(
        [format_table(titles, cells), "", *lines, f"{'PASS' if verdict.passed else 'FAIL'}: {verdict.diagnosis}"]
    )


def _differing(windows: NDArray[np.int32], reference: Reference) -> int:
    """How many tokens of the windows differ from the recorded ones."""
    if windows.shape != reference.windows.shape:
        return windows.size
    return int((windows != reference.windows).sum())


def _judge_text(baseline: Baseline, result: DivergenceResult) -> list[Judgement]:
    now, runs, rounding = text_run_of(result), [run.text for run in baseline.runs], baseline.rounding
    losses, divergences = [run.losses for run in runs], [run.divergences for run in runs]
    agreement = [run.agreement for run in runs]
    return [
        # A difference in log-probability causes a divergence of half its square.
        judge_mean("perplexity", losses, now.losses, show=exp, resolution=sqrt(2 * rounding)),
        judge_mean("mean KL", divergences, now.divergences, resolution=rounding),
        judge_tail("99.9 % KL", [run.tail for run in runs], result.tokens, resolution=rounding),
        judge_mean(
            "top-1 agreement, %",
            agreement,
            now.agreement,
            worse=-1,
            show=lambda share: 100 * share,
            resolution=1 / len(result.tokens),  # a near tie
        ),
    ]


def _judge_answers(baseline: Baseline, now: list[Followed]) -> list[Judgement]:
    runs, tokens = [run.answers for run in baseline.runs], [len(answer.tokens) for answer in baseline.answers]
    divergences, flips = [[a.divergence for a in run] for run in runs], [sum(a.flips for a in run) for run in runs]
    return [
        judge_mean(ANSWERS, divergences, [a.divergence for a in now], resolution=baseline.rounding),
        judge_count(FLIPS, flips, sum(a.flips for a in now), sum(tokens)),
    ]


def _judge_speed(then: Speed, now: Speed, gated: bool) -> list[Judgement]:
    return [
        judge_speed("prefill speed, ratio", then.relative_prefill, now.relative_prefill, gated=gated),
        judge_speed("decode speed, ratio", then.relative_decode, now.relative_decode, gated=gated),
    ]


def _diagnose(failed: Set[str]) -> str:
    """Says in words where to look for the fault."""
    if not failed:
        return "no regression"
    found = []
    if TEXT in failed:
        found.append("the tokenizer splits the text into other tokens")
    if PROMPTS in failed:
        found.append("the chat template or the tokenizer gives other prompts")
    if EXACT in failed:
        found.append("it is off in float32 too: other weights, metadata or operations")
    elif failed & {"perplexity", "mean KL", "99.9 % KL", "top-1 agreement, %"}:
        found.append("float32 is as recorded: look at the kernels that compute in 8 bits")
    elif failed & {ANSWERS, FLIPS} and PROMPTS not in failed:
        found.append("whole windows are as recorded: look at the code that computes one token at a time")
    if any("speed" in measure for measure in failed):
        found.append("slower relative to the machine's own speed")
    return "; ".join(found)
