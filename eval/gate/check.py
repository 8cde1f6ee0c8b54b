"""The regression check: what a model says now against what a baseline holds. judge.py tells when a measure fails."""

from collections.abc import Set
from dataclasses import dataclass
from math import exp
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine.threads import default_threads
from lltool.engine.tokenizer import read_tokenizer
from lltool.eval.divergence import DivergenceResult
from lltool.eval.gate.baseline import Baseline, check_is_of, describe, read_baseline
from lltool.eval.gate.judge import Row, judge_count, judge_exact, judge_mean, judge_speed, judge_tail
from lltool.eval.gate.prompts import Followed, encode_prompts, follow
from lltool.eval.gate.record import Stages, no_stages
from lltool.eval.gate.runs import Setting, compare_text, cut_text, first_windows, load, summarize
from lltool.eval.gate.speed import Speed
from lltool.eval.provenance import cpu_name
from lltool.eval.reference_file import Reference
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
    """The measures, what the failed ones say together, and what else is not as it was."""

    rows: tuple[Row, ...]
    diagnosis: str
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not any(row.failed for row in self.rows)


def check(
    path: Path,
    *,
    model_path: Path | None = None,
    text_path: Path | None = None,
    threads: int | None = None,
    batch: int = 512,
    gate_speed: bool = False,
    stages: Stages = no_stages,
) -> Verdict:
    """Holds a model (by default the file that was recorded) against the baseline in `path`.

    Raises InputError for a damaged baseline and one of another model, vocabulary or text.
    """
    baseline, reference = read_baseline(path)
    model_path, text_path = model_path or Path(baseline.model.path), text_path or Path(baseline.text.path)
    if not text_path.exists():
        raise InputError(f"{text_path}: the text of {path} is not there; say with -f where it is")
    if (found := sha256_of([text_path])) != baseline.text.sha256:
        raise InputError(
            f"{text_path}: sha256 {found[:12]}, but {path} was recorded on a text of {baseline.text.sha256[:12]}; "
            f"take that text ({baseline.text.path}) or record anew"
        )
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
    with stages("in 8 bits") as progress, load(model_path, setting, room, threads=threads) as model:
        speed.sample(model)
        result = compare_text(reference, model, progress)
        followed = [follow(model, ids, answer) for ids, answer in zip(asked, baseline.answers, strict=True)]
        speed.sample(model)
    few = first_windows(reference, baseline.exact.windows)
    with stages("in float32") as progress, load(model_path, setting, room, precision="f32", threads=threads) as model:
        exact = compare_text(few, model, progress)

    rows = (
        judge_exact(TEXT, _differing(windows, reference), windows.size),
        judge_exact(
            PROMPTS,
            sum(ids is None or tuple(ids) != a.prompt for ids, a in zip(prompts, baseline.answers, strict=True)),
            len(prompts),
        ),
        *_judge_text(baseline, result),
        *_judge_answers(baseline, followed),
        judge_mean(
            EXACT,
            [run.divergences for run in baseline.exact.runs],
            summarize(exact).divergences,
            resolution=baseline.exact.rounding,
        ),
        *_judge_speed(baseline.speed, speed, gate_speed),
    )
    failed = {row.measure for row in rows if row.failed}
    notes = []
    if facts.sha256 != baseline.model.sha256:
        notes.append(f"{model_path} is not the file that was recorded: what is measured is its change too")
    if cpu_name() != baseline.cpu:
        notes.append(f"recorded on {baseline.cpu}, checked on {cpu_name()}: speeds compare roughly at most")
    if speed.threads != baseline.speed.threads:
        notes.append(f"recorded with {baseline.speed.threads} threads, checked with {speed.threads}")
    return Verdict(rows, _diagnose(failed), tuple(notes))


def _differing(windows: NDArray[np.int32], reference: Reference) -> int:
    """How many tokens of the windows are not as recorded."""
    if windows.shape != reference.windows.shape:
        return windows.size
    return int((windows != reference.windows).sum())


def _judge_text(baseline: Baseline, result: DivergenceResult) -> list[Row]:
    now, runs = summarize(result), [run.text for run in baseline.runs]
    return [
        judge_mean("perplexity", [run.losses for run in runs], now.losses, show=exp),
        judge_mean("mean KL", [run.divergences for run in runs], now.divergences),
        judge_tail("99.9 % KL", [run.high for run in runs], result.tokens),
        judge_mean(
            "top-1 agreement, %",
            [run.agreement for run in runs],
            now.agreement,
            worse=-1,
            show=lambda share: 100 * share,
        ),
    ]


def _judge_answers(baseline: Baseline, now: list[Followed]) -> list[Row]:
    runs = [run.answers for run in baseline.runs]
    return [
        judge_mean(ANSWERS, [[a.divergence for a in run] for run in runs], [a.divergence for a in now]),
        judge_count(
            FLIPS,
            [sum(a.flips for a in run) for run in runs],
            sum(a.flips for a in now),
            sum(len(answer.tokens) for answer in baseline.answers),
        ),
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
