"""Answers and subsets equal the lines that llama-perplexity printed for SmolLM2 with the same weights in F32."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.tasks.choice import TASKS, Answer, answer_task
from lltool.eval.tasks.formats import Question
from lltool.eval.tasks.report import format_row, format_summary
from lltool.gguf.errors import InputError
from tests.eval.tasks.multiple_choice_file import QUESTIONS, write_multiple_choice
from tests.eval.tiny_text_model import write_text_model

DATA = Path(__file__).parent / "data"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Model]:
    with load_model(write_text_model(tmp_path / "tiny.gguf"), context=128, sequences=4, precision="f32") as model:
        yield model


def llama_lines(task: str, tasks: int) -> list[str]:
    lines = (DATA / f"llama_{task}_{tasks}.txt").read_text().splitlines()
    return [line for line in lines if line[0].isdigit()]


def rows(task: str, answers: list[Answer]) -> list[str]:
    return [format_row(task, answers[: number + 1]) for number in range(len(answers))]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "tasks"), [("hellaswag", 11), ("multiple-choice", 11), ("multiple-choice", 0)])
def test_lines_are_those_of_llama_perplexity(
    real_model: Callable[[str], Path], tmp_path: Path, task: str, tasks: int
) -> None:
    """The best two scores are at least 0.1 apart, which is more than rounding activations to 8 bits changes."""
    path = DATA / "hellaswag.txt"
    if task == "multiple-choice":
        path = write_multiple_choice(tmp_path / "tasks", QUESTIONS)
    with load_model(real_model("smollm2-q4_1"), context=256, sequences=8) as model:
        answers = answer_task(model, TASKS[task], TASKS[task].read(path), tasks=tasks)
    assert rows(task, answers) == llama_lines(task, tasks)
    if (task, tasks) == ("multiple-choice", 0):
        final, chance, _ = format_summary(task, answers).splitlines()
        assert final == "Final result: 75.0000 +/- 9.0289"
        assert chance.startswith("Random chance: 26.9663 +/- 9.253")  # the rest is float32's rounding


@pytest.mark.slow
def test_winogrande_scores_are_those_of_llama_perplexity(real_model: Callable[[str], Path]) -> None:
    """Includes texts too short to skip the choice, a text that begins another one, and a choice at the end."""
    task = TASKS["winogrande"]
    with load_model(real_model("smollm2-q4_1"), context=256, sequences=8, precision="f32") as model:
        answers = answer_task(model, task, task.read(DATA / "winogrande.csv"))
    for mine, theirs in zip(rows("winogrande", answers), llama_lines("winogrande", 0), strict=True):
        number, share, first, second, chosen, right = theirs.split()
        found = mine.split()
        assert [*found[:2], *found[4:]] == [number, share, chosen, right]
        # llama-perplexity's keys and values are float16, ours float32.
        assert [float(found[2]), float(found[3])] == pytest.approx([float(first), float(second)], abs=5e-3, nan_ok=True)


def test_means_are_over_the_tokens_not_in_common(tiny: Model) -> None:
    """Compared with one forward pass for each text; a character is a token."""
    texts = ("Water is wet", "Water is warm", "Water is")
    (answer,) = answer_task(tiny, TASKS["hellaswag"], [Question(5, texts, frozenset([1]))])
    expected = []
    for text in texts:
        ids = tiny.tokenizer.encode(text)
        x = tiny.forward([(tiny.new_sequence(), ids, "all")]).all().astype(float)
        logprobs = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)))[np.arange(len(ids) - 1), ids[1:]]
        expected.append(logprobs[len("Water i") - 1 :].mean())
    assert answer.scores == pytest.approx(expected, abs=1e-5)  # float32 sums
    assert (answer.number, answer.chosen, answer.right) == (5, int(np.argmax(expected)), {1})


def test_texts_without_a_common_token_begin_after_eos(tiny: Model) -> None:
    texts = ("one", "two")
    (answer,) = answer_task(tiny, TASKS["multiple-choice"], [Question(0, texts, frozenset([0]))])
    assert tiny.tokenizer.eos is not None
    ids = [tiny.tokenizer.eos, *tiny.tokenizer.encode("one")]
    x = tiny.forward([(tiny.new_sequence(), ids, "all")]).all().astype(float)
    logprobs = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)))[np.arange(3), ids[1:]]
    assert answer.scores[0] == pytest.approx(logprobs.mean(), abs=1e-5)


def test_a_winogrande_score_that_is_not_a_number_loses() -> None:
    choose = TASKS["winogrande"].choose
    assert [choose((nan, -1.0)), choose((-1.0, nan)), choose((-1.0, -2.0)), choose((-1.0, -1.0))] == [1, 1, 0, 1]


def test_a_task_longer_than_the_context_is_named_before_any_is_answered(tiny: Model) -> None:
    short = Question(0, ("ab", "ac"), frozenset([0]))
    questions = [short, replace(short, number=1, texts=("a" * 200 + "b", "a" * 200 + "c"))]
    with pytest.raises(InputError, match=r"tasks\.txt: task 1 has 201 tokens, but the model was loaded for 128"):
        answer_task(tiny, TASKS["winogrande"], [replace(q, bases=q.texts) for q in questions], name="tasks.txt")
    assert tiny.calls == 0
