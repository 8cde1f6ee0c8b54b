"""The regression check: what a model says now against what a baseline holds. judge.py tells when a measure fails."""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool import __version__
from lltool.engine.threads import default_threads
from lltool.engine.tokenizer import read_tokenizer
from lltool.engine.tuning import cpu_name
from lltool.eval.divergence import DivergenceResult
from lltool.eval.gate.baseline import Baseline, ModelFacts, check_is_of, describe, read_baseline
from lltool.eval.gate.judge import Row, judge_count, judge_exact, judge_mean, judge_rounding, judge_speed, judge_tail
from lltool.eval.gate.prompts import Followed, encode_prompts, follow
from lltool.eval.gate.runs import Setting, cut_text, first_windows, load, summarize
from lltool.eval.gate.speed import Speed
from lltool.eval.markdown import format_table
from lltool.eval.reference_file import Reference, compare
from lltool.eval.steps import Progress, Steps
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
class Verdict:
    """The measures, what the failed ones say together, and what else is not as it was; `made` tells of what and how."""

    rows: tuple[Row, ...]
    diagnosis: str
    notes: tuple[str, ...]
    made: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        return not any(row.failed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        said = {"passed": self.passed, "diagnosis": self.diagnosis, "notes": self.notes, "measures": rows}
        return {**said, **self.made}


def check(
    path: Path,
    *,
    model_path: Path | None = None,
    text_path: Path | None = None,
    threads: int | None = None,
    batch: int = 512,
    gate_speed: bool = False,
    progress: Progress | None = None,
) -> Verdict:
    """Holds a model (by default the file that was recorded) against the baseline in `path`.

    Raises InputError for a damaged baseline and one of another model, vocabulary or text.
    """
    baseline, reference = read_baseline(path)
    model_path, text_path = model_path or Path(baseline.model.path), text_path or Path(baseline.text.path)
    _check_text(path, baseline, text_path)
    with open_gguf(model_path) as file:
        tokenizer = read_tokenizer(file)
        facts = describe(file, tokenizer)
        check_is_of(path, baseline, facts)
        windows = cut_text(tokenizer, text_path, reference.context, len(reference.windows))
        prompts = encode_prompts(file.metadata, tokenizer, [answer.messages for answer in baseline.answers])

    asked = [ids or answer.prompt for ids, answer in zip(prompts, baseline.answers, strict=True)]
    room = max(
        reference.context,
        *(len(ids) + len(answer.tokens) for ids, answer in zip(asked, baseline.answers, strict=True)),
    )
    setting, speed = Setting(isa.chosen(), batch), Speed(threads or default_threads())
    steps = Steps(progress, 3)
    steps.begin("in 8 bits")
    with load(model_path, setting, room, threads=threads) as model:
        speed.sample(model)
        result = compare(reference, model, steps.inside)
        steps.begin("answers")
        followed = [follow(model, ids, answer) for ids, answer in zip(asked, baseline.answers, strict=True)]
        speed.sample(model)
    few = first_windows(reference, baseline.exact.windows)
    steps.begin("in float32")
    with load(model_path, setting, room, precision="f32", threads=threads) as model:
        exact = compare(few, model, steps.inside)
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
            summarize(exact).divergences,
            baseline.rounding,
        ),
        *_judge_speed(baseline.speed, speed, gate_speed and speed.threads == baseline.speed.threads),
    )
    failed = {row.measure for row in rows if row.failed}
    notes = _notes(baseline, facts, speed.threads)
    method = reference.metadata.get("method")
    made = {
        "tool": f"lltool {__version__}",
        "method": f"{len(windows)} {method}; {len(asked)} prompts, led along the recorded answers",
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
    return Verdict(rows, _diagnose(failed), notes, made)


def _check_text(path: Path, baseline: Baseline, text_path: Path) -> None:
    if not text_path.exists():
        raise InputError(f"{text_path}: the text of {path} is not there; say with -f where it is")
    if (found := sha256_of([text_path])) != baseline.text.sha256:
        raise InputError(
            f"{text_path}: sha256 {found[:12]}, but {path} was recorded on a text of {baseline.text.sha256[:12]}; "
            f"take that text ({baseline.text.path}) or record anew"
        )


def _notes(baseline: Baseline, facts: ModelFacts, threads: int) -> tuple[str, ...]:
    notes = []
    if facts.sha256 != baseline.model.sha256:
        notes.append(f"{facts.path} is not the file that was recorded: what is measured is its change too")
    if cpu_name() != baseline.cpu:
        notes.append(f"recorded on {baseline.cpu}, checked on {cpu_name()}: speeds compare roughly at most")
    if threads != baseline.speed.threads:
        notes.append(f"recorded with {baseline.speed.threads} threads, checked with {threads}: speeds do not compare")
    return tuple(notes)


def format_verdict(verdict: Verdict) -> str:
    """The measures as a table, and below it what they say."""
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
    """How many tokens of the windows are not as recorded."""
    if windows.shape != reference.windows.shape:
        return windows.size
    return int((windows != reference.windows).sum())


def _judge_text(baseline: Baseline, result: DivergenceResult) -> list[Row]:
    now, runs, rounding = summarize(result), [run.text for run in baseline.runs], baseline.rounding
    losses, divergences = [run.losses for run in runs], [run.divergences for run in runs]
    agreement = [run.agreement for run in runs]
    return [
        # Half the square of a difference in log-probability is the divergence that it makes.
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


def _judge_answers(baseline: Baseline, now: list[Followed]) -> list[Row]:
    runs, tokens = [run.answers for run in baseline.runs], [len(answer.tokens) for answer in baseline.answers]
    divergences, flips = [[a.divergence for a in run] for run in runs], [sum(a.flips for a in run) for run in runs]
    return [
        judge_mean(ANSWERS, divergences, [a.divergence for a in now], resolution=baseline.rounding),
        judge_count(FLIPS, flips, sum(a.flips for a in now), sum(tokens)),
    ]


def _judge_speed(then: Speed, now: Speed, gated: bool) -> list[Row]:
    return [
        judge_speed("prefill speed, ratio", then.relative_prefill, now.relative_prefill, gated=gated),
        judge_speed("decode speed, ratio", then.relative_decode, now.relative_decode, gated=gated),
    ]


def _diagnose(failed: Set[str]) -> str:
    """Where to look, in words."""
    if not failed:
        return "no regression"
    found = []
    if TEXT in failed:
        found.append("the tokenizer cuts the text into other tokens")
    if PROMPTS in failed:
        found.append("the chat template, or the tokenizer, gives other prompts")
    if EXACT in failed:
        found.append("it is off in float32 too: other weights, metadata or operations")
    elif failed & {"perplexity", "mean KL", "99.9 % KL", "top-1 agreement, %"}:
        found.append("in float32 it is as recorded: look at the kernels that compute in 8 bits")
    elif failed & {ANSWERS, FLIPS} and PROMPTS not in failed:
        found.append("whole windows are as recorded: look at what computes one token at a time")
    if any("speed" in measure for measure in failed):
        found.append("slower, next to what the machine does")
    return "; ".join(found)
