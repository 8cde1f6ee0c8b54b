"""Reports answers: llama-perplexity's line after each task and at the end, and a record as JSON values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.engine.model import Model
from lltool.eval.common.intervals import share_error, wilson
from lltool.eval.scoring.perplexity_report import describe_run
from lltool.eval.tasks.choice import TASKS, Answer
from lltool.gguf.digest import sha256_of

HEADERS = {"hellaswag": "task\tacc_norm\t95% confidence interval", "multiple-choice": "task\tacc_norm"}


@dataclass(frozen=True)
class TaskScore:
    """The share of right answers with its standard error and 95 % interval, and `chance`, that of random answers."""

    tasks: int
    right: int
    accuracy: float
    error: float
    low: float
    high: float
    chance: float

    @staticmethod
    def of(answers: Sequence[Answer]) -> "TaskScore":
        tasks, right = len(answers), sum(answer.is_right for answer in answers)
        share = right / tasks
        chance = sum(len(answer.right) for answer in answers) / sum(len(answer.scores) for answer in answers)
        return TaskScore(tasks, right, share, share_error(share, tasks), *wilson(right, tasks), chance)


def format_row(task: str, answers: Sequence[Answer]) -> str:
    """The line for the last of `answers`, in llama-perplexity's format."""
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
    found = TaskScore.of(answers)
    score, interval = f"{100 * found.accuracy:.4f} +/- {100 * found.error:.4f}", f"{100 * found.low:.2f}% to "
    lines = {
        "winogrande": [f"Final Winogrande score({found.tasks} tasks): {score}"],
        "multiple-choice": [
            f"Final result: {score}",
            f"Random chance: {100 * found.chance:.4f} +/- {100 * share_error(found.chance, found.tasks):.4f}",
        ],
    }.get(task, [f"Final {TASKS[task].title} score({found.tasks} tasks): {score}"])
    return "\n".join([*lines, f"95% interval (Wilson): {interval}{100 * found.high:.2f}%"])


def to_record(model: Model, task: str, path: Path, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    found = TaskScore.of(answers)
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
