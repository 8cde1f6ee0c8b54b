"""What is told of answers: llama-perplexity's lines as they come and at the end, a record for machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from lltool.engine.model import Model
from lltool.eval.intervals import wilson
from lltool.eval.perplexity_report import describe_run
from lltool.eval.tasks.choice import TASKS, Answer
from lltool.gguf.digest import sha256_of

HEADERS = {"hellaswag": "task\tacc_norm\t95% confidence interval", "multiple-choice": "task\tacc_norm"}


@dataclass(frozen=True)
class Summary:
    """The share of right answers, its standard error and 95 % interval, and that of right ones among all choices."""

    tasks: int
    right: int
    accuracy: float
    error: float
    low: float
    high: float
    chance: float

    @staticmethod
    def of(answers: Sequence[Answer]) -> "Summary":
        tasks, right = len(answers), sum(answer.is_right for answer in answers)
        share = right / tasks
        chance = sum(len(answer.right) for answer in answers) / sum(len(answer.scores) for answer in answers)
        return Summary(tasks, right, share, _error(share, tasks), *wilson(right, tasks), chance)


def format_row(task: str, answers: Sequence[Answer]) -> str:
    """The line of the last of `answers`."""
    right, done, last = sum(answer.is_right for answer in answers), len(answers), answers[-1]
    share = 100 * right / done
    match task:
        case "hellaswag":
            low, high = wilson(right, done)
            return f"{done}\t{share:.8f}%\t[{100 * low:.4f}%, {100 * high:.4f}%]"
        case "winogrande":
            first, second = last.scores
            return f"{done}\t{share:.4f}\t{first:10.6f}  {second:10.6f}  {last.chosen + 1}  {min(last.right) + 1}"
    return f"{done}\t{share:.8f}"


def format_summary(task: str, answers: Sequence[Answer]) -> str:
    found = Summary.of(answers)
    score, interval = f"{100 * found.accuracy:.4f} +/- {100 * found.error:.4f}", f"{100 * found.low:.2f}% to "
    lines = {
        "winogrande": [f"Final Winogrande score({found.tasks} tasks): {score}"],
        "multiple-choice": [
            f"Final result: {score}",
            f"Random chance: {100 * found.chance:.4f} +/- {100 * _error(found.chance, found.tasks):.4f}",
        ],
    }.get(task, [f"Final {TASKS[task].title} score({found.tasks} tasks): {score}"])
    return "\n".join([*lines, f"95% interval (Wilson): {interval}{100 * found.high:.2f}%"])


def to_record(model: Model, task: str, path: Path, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    found = Summary.of(answers)
    return {
        **describe_run(model),
        "task": task,
        "method": TASKS[task].method,
        "file": str(path),
        "file_sha256": sha256_of([path]),
        "context": model.context,
        "tasks": found.tasks,
        "right": found.right,
        "accuracy": found.accuracy,
        "standard_error": found.error,
        "low": found.low,
        "high": found.high,
        "random_chance": found.chance,
        "seconds": seconds,
        "answers": [
            {"number": a.number, "scores": a.scores, "chosen": a.chosen, "right": sorted(a.right)} for a in answers
        ],
    }


def _error(share: float, trials: int) -> float:
    return sqrt(share * (1 - share) / (trials - 1)) if trials > 1 else float("nan")
