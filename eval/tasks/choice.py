"""HellaSwag, Winogrande and multiple choice with llama-perplexity's files, subsets and scores, for comparable figures.

Each choice makes a text, and the answer is the text whose own tokens have the highest mean log-probability. Winogrande
scores the tokens after the choice, without the last one, if all texts differ in more than three tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.eval.scoring.branches import Branches, EndingScores, score_branches
from lltool.eval.scoring.likelihood import begin_token
from lltool.eval.tasks.draw import draw_scaled, draw_uniform
from lltool.eval.tasks.formats import Question, read_hellaswag, read_multiple_choice, read_winogrande
from lltool.gguf.errors import InputError

TRAILING = 3  # if Winogrande's texts differ in more tokens than this, the choices themselves are not scored


@dataclass(frozen=True)
class Answer:
    """What a model chose; `scores` are mean log-probabilities of a token, `right` the numbers of the right choices."""

    number: int
    scores: tuple[float, ...]
    chosen: int
    right: frozenset[int]

    @property
    def is_right(self) -> bool:
        return self.chosen in self.right


# Called with the tasks done, the number of all tasks, and the last answer.
AnswerProgress = Callable[[int, int, Answer], None]


@dataclass(frozen=True)
class ScoringPlan:
    """The branches to compute for a question, and `judge`, which turns their log-probabilities into its scores."""

    branches: Branches
    judge: Callable[[list[EndingScores]], tuple[float, ...]]


@dataclass(frozen=True)
class Task:
    """How a task is read, drawn and scored.

    `draw` takes the number of questions and the number wanted; `default` is the number wanted, 0 for all in order.
    """

    title: str
    method: str
    read: Callable[[Path], list[Question]]
    draw: Callable[[int, int], list[int]]
    plan: Callable[[Model, Question], ScoringPlan]
    default: int = 0
    always_draws: bool = False
    choose: Callable[[tuple[float, ...]], int] = lambda scores: int(np.argmax(scores))


def answer_task(
    model: Model,
    task: Task,
    questions: Sequence[Question],
    *,
    tasks: int | None = None,
    name: str = "tasks",
    progress: AnswerProgress | None = None,
) -> list[Answer]:
    """Answers `tasks` of the questions (0: all), the same ones and in the same order as llama-perplexity.

    Raises InputError, with `name` for the file, for a question that is longer than the model's context.
    """
    wanted = (task.default if tasks is None else tasks) or len(questions)
    if wanted < len(questions) or task.always_draws:
        questions = [questions[number] for number in task.draw(len(questions), wanted)]
    plans = [task.plan(model, question) for question in questions]
    for question, plan in zip(questions, plans, strict=True):
        longest = len(plan.branches.context) - 1 + max(len(ending) for ending in plan.branches.endings)
        if longest > model.context:
            raise InputError(
                f"{name}: task {question.number} has {longest} tokens, but the model was loaded for {model.context}; "
                "ask for a larger context (-c)"
            )
    answers: list[Answer] = []
    found = score_branches(model, (plan.branches for plan in plans))
    for question, plan, scores in zip(questions, plans, found, strict=True):
        judged = plan.judge(scores)
        answers.append(Answer(question.number, judged, task.choose(judged), question.right))
        if progress:
            progress(len(answers), len(questions), answers[-1])
    return answers


def plan_mean(model: Model, question: Question) -> ScoringPlan:
    """Scores all tokens after the ones that all texts begin with."""
    texts = [model.tokenizer.encode(text) for text in question.texts]
    stem = min(_common(texts), min(map(len, texts)) - 1)  # each text keeps a token of its own
    branches = _branch(model, texts, stem)
    return ScoringPlan(branches, lambda scores: tuple(_mean(ending.logprobs) for ending in scores))


def plan_winogrande(model: Model, question: Question) -> ScoringPlan:
    """Scores the tokens after the choices, and the choices too if the texts differ in few tokens.

    In the second case llama.cpp predicts the second choice's first token from the first text's end (its source has a
    FIXME). This function does the same, so that figures are comparable: it scores the token as part of the first text.
    """
    texts = [model.tokenizer.encode(text) for text in question.texts]
    stem = _common(texts)
    skips = all(len(text) - stem > TRAILING for text in texts)
    starts = [len(model.tokenizer.encode(base)) if skips else stem for base in question.bases]
    branches = _branch(model, texts, stem)
    first, second = branches.endings
    if not skips:
        branches = Branches(branches.context, [[*first, *second[:1]], second])

    def judge(scores: list[EndingScores]) -> tuple[float, ...]:
        parts = [ending.logprobs for ending in scores]
        if not skips:
            parts = [parts[0][: len(first)], np.concatenate([parts[0][len(first) :], parts[1][1:]])]
        means = []
        for text, part, start in zip(texts, parts, starts, strict=True):
            stop = len(text) - (len(text) - start > 1)
            means.append(_mean(part[max(0, start - stem) : stop - stem]))
        return tuple(means)

    return ScoringPlan(branches, judge)


def _branch(model: Model, texts: list[list[int]], stem: int) -> Branches:
    return Branches(texts[0][:stem] or [begin_token(model)], [text[stem:] for text in texts])


def _common(texts: list[list[int]]) -> int:
    """The number of tokens with which all texts begin."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False)))


def _mean(logprobs: NDArray[np.float64]) -> float:
    return float(logprobs.mean()) if logprobs.size else float("nan")


TASKS = {
    "hellaswag": Task(
        "HellaSwag",
        "highest mean log-probability of the tokens that the endings do not share (acc_norm)",
        read_hellaswag,
        draw_uniform,
        plan_mean,
        default=400,
        always_draws=True,
    ),
    "winogrande": Task(
        "Winogrande",
        "highest mean log-probability of the tokens after the choice, without the last one",
        read_winogrande,
        draw_scaled,
        plan_winogrande,
        choose=lambda scores: 0 if scores[0] > scores[1] else 1,  # NaN chooses the second
    ),
    "multiple-choice": Task(
        "Multiple choice",
        "highest mean log-probability of the tokens that the answers do not share (acc_norm)",
        read_multiple_choice,
        draw_scaled,
        plan_mean,
    ),
}
