"""The model class for lm-evaluation-harness, tested with its evaluator on a local task and with single requests."""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lltool.engine.generate import generate
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.eval.scoring.likelihood import encode, encode_pair, loglikelihoods, rolling_loglikelihoods
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean, u32
from tests.eval.tasks.multiple_choice_file import QUESTIONS
from tests.eval.tiny_text_model import random_text, write_text_model

pytest.importorskip("lm_eval")

from lltool.eval.scoring.lm_eval import LltoolLM

pytestmark = pytest.mark.extra

TASK = """
task: local_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{answers}}}}"
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keys = {"tokenizer.ggml.add_bos_token": boolean(True), "tokenizer.ggml.bos_token_id": u32(94)}
    return write_text_model(tmp_path / "tiny.gguf", **keys)


@pytest.fixture
def lm(path: Path) -> Any:
    return LltoolLM(str(path), max_length=64, precision="f32", max_gen_toks=8)


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    with load_model(path, context=64, sequences=2, precision="f32") as model:
        yield model


@pytest.mark.slow
def test_a_task_by_its_evaluator_is_not_at_chance(
    real_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its decisions also equal those from our own log-likelihoods."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data = tmp_path / "questions.jsonl"
    rows = [{"question": question, "answers": answers, "right": right} for question, answers, right in QUESTIONS]
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    path = real_model("smollm2-q4_1")
    found = lm_eval.simple_evaluate(
        model="lltool",
        model_args={"pretrained": str(path), "max_length": 256},
        tasks=["local_questions"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    with load_model(path, context=256) as model:
        right = 0
        for question, answers, wanted in QUESTIONS:
            scores = loglikelihoods(model, [(question, f" {answer}") for answer in answers])
            right += max(range(len(answers)), key=lambda number, s=scores: s[number].logprob) == wanted  # type: ignore[misc]
    accuracy = found["results"]["local_questions"]["acc,none"]
    assert accuracy == pytest.approx(right / len(QUESTIONS))
    assert accuracy > 0.6  # chance: 0.29 and a standard error of 0.09


def test_the_plugin_is_announced() -> None:
    (found,) = entry_points(group="lm_eval.models", name="lltool")
    assert found.load() is LltoolLM


def test_pairs_are_cut_where_lm_eval_cuts_them(model: Model) -> None:
    from lm_eval.api.model import TemplateLM

    harness = SimpleNamespace(backend="causal", tok_encode=lambda text: encode(model, text))
    for pair in [("ab", " cd"), ("ab  ", "cd"), ("ab\n", " cd"), (" x", "y ")]:
        assert encode_pair(model, *pair) == TemplateLM._encode_pair(harness, *pair)


def test_log_likelihoods_are_ours(lm: Any, model: Model) -> None:
    pairs = [("ab", " cd"), ("", "xyz"), ("ab", " e")]
    expected = loglikelihoods(model, pairs)
    assert lm.loglikelihood(requests(*pairs)) == [
        (pytest.approx(likelihood.logprob, abs=1e-5), likelihood.is_greedy) for likelihood in expected
    ]
    text = random_text(150)  # two windows and a half
    (rolling,) = rolling_loglikelihoods(model, [text])
    assert lm.loglikelihood_rolling(requests((text,))) == [pytest.approx(rolling.logprob, abs=1e-4)]


def test_a_context_too_long_loses_its_beginning(lm: Any, caplog: pytest.LogCaptureFixture) -> None:
    tail = random_text(62)
    (whole,) = lm.loglikelihood(requests(("x" * 40 + tail, "abc")))
    assert "a context of 103 tokens is cut to its last 62" in caplog.text
    lm.model.tokenizer.__dict__["add_bos"] = False
    assert lm.loglikelihood(requests((tail, "abc"))) == [whole]


def test_generation_ends_at_stop_strings(lm: Any, model: Model) -> None:
    def plain(prompt: str, length: int) -> str:
        sampler = Sampler(temperature=0)
        return "".join(
            token.text for token in generate(model, encode(model, prompt), sampler=sampler, max_tokens=length)
        )

    first, second = plain("ab", 12), plain("abx", 8)
    stop = first[5:7]
    found = lm.generate_until(
        requests(
            ("abx", {"until": [], "do_sample": False}),
            ("ab", {"until": [stop, "never there"], "max_gen_toks": 12, "temperature": 0.0}),
            ("ab", {"until": stop, "max_new_tokens": 12}),
        )
    )
    cut = first[: first.index(stop)]
    assert found == [second, cut, cut]


def test_sampling_is_seeded(lm: Any) -> None:
    options = {"do_sample": True, "temperature": 1.0, "seed": 3, "max_gen_toks": 10}
    first, second, other = lm.generate_until(requests(("ab", options), ("ab", options), ("ab", options | {"seed": 4})))
    assert first == second != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, r"generation options \{'num_beams': 4\}: wanted only max_gen_toks"),
        ({"max_gen_toks": 64}, "64 tokens to generate leave no room in a context of 64"),
    ],
)
def test_bad_generation_options(lm: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lm.generate_until(requests(("ab", options)))


def test_chat_template(lm: Any) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    assert lm.apply_chat_template(history[:1]) == "user:Hi\n"
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "user:Hi\nassistant:Well,"
    assert lm.chat_template(True).startswith("{% for m in messages %}")
    assert lm.chat_template(False) == ""
