"""Recording and checking with a tiny model: passes, regressions and bad input."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.gate.baseline import read_baseline
from lltool.eval.gate.check import GateVerdict, check, format_verdict
from lltool.eval.gate.prompts import PromptAnswer, answer, encode_prompts, follow
from lltool.eval.gate.record import record
from lltool.eval.gate.runs import honest_settings, rounding_of
from lltool.eval.gate.speed import Speed
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean, f32, string, u32
from tests.eval.tiny_text_model import random_text, write_text_model

Recorded = tuple[Path, Path, Path]  # model, text, baseline


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("gate")
    model, text = write_text_model(folder / "model.gguf"), folder / "text.txt"
    text.write_text(random_text(700))
    record(model, text, folder / "base.json", context=64, windows=9, answer_tokens=6, threads=1)
    return model, text, folder / "base.json"


@pytest.mark.parametrize(
    ("available", "runs"),
    [
        (("avx512", "avx2", "scalar"), [("avx512", 512), ("avx2", 512)]),
        (("avx2", "scalar"), [("avx2", 512), ("scalar", 512)]),
        (("scalar",), [("scalar", 512), ("scalar", 8)]),
    ],
)
def test_honest_runs_round_differently_wherever_that_is_possible(
    available: tuple[str, ...], runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with the same bits would claim an error of 0, and then another processor's results look like a fault."""
    monkeypatch.setattr("lltool.eval.gate.runs.isa.chosen", lambda: available[0])
    monkeypatch.setattr("lltool.eval.gate.runs._native.available_isas", lambda: list(available))
    assert [(setting.instruction_set, setting.batch) for setting in honest_settings()] == runs


def failures(verdict: GateVerdict) -> set[str]:
    return {row.measure for row in verdict.rows if row.failed}


def test_the_same_model_passes_whatever_the_batch_and_threads(recorded: Recorded) -> None:
    for batch, threads in ((512, 1), (512, 2), (64, 1), (50, 1), (3, 2)):
        verdict = check(recorded[2], batch=batch, threads=threads)
        assert verdict.passed, format_verdict(verdict)
        assert verdict.diagnosis == "no regression"
    values = {row.measure: row for row in verdict.rows}
    assert (values["tokens of the text"].now, values["prompts"].now) == (9 * 64, 8)
    assert abs(values["perplexity"].difference) < 1e-2  # of 95: other batches use other kernels
    assert values["greedy flips"].now == 0


def test_the_baseline_holds_windows_and_answers(recorded: Recorded) -> None:
    baseline, reference = read_baseline(recorded[2])
    assert reference.windows.shape == (9, 64)
    assert all(len(run.text.losses) == 9 for run in baseline.runs)
    with load_model(recorded[0], precision="f32") as model:
        ids = encode_prompts(model.file.metadata, model.tokenizer)
        assert [list(a.prompt) for a in baseline.answers] == ids
        for found in baseline.answers[:2]:  # by the definition: each token alone, after all tokens before it
            sequence, text = model.new_sequence(), [*found.prompt, *found.tokens]
            for i, (token, log_prob) in enumerate(zip(found.tokens, found.log_probs, strict=True)):
                logits = model.evaluate(
                    sequence, text[: len(found.prompt)] if not i else [text[len(found.prompt) + i - 1]]
                )
                shifted = logits.astype(float) - logits.max()
                assert logits.argmax() == token
                assert log_prob == pytest.approx(shifted[token] - np.log(np.exp(shifted).sum()), abs=1e-5)


def test_an_answer_ends_with_the_text(recorded: Recorded) -> None:
    with load_model(recorded[0], sequences=2) as model:
        messages = ({"role": "user", "content": "x"},)
        (free,) = answer(model, [(messages, [3, 4])], 5)
        assert len(free.tokens) == 5
        model._open().tokenizer = replace(model.tokenizer, end_of_generation=frozenset([free.tokens[1]]))
        ended, other = answer(model, [(messages, [3, 4]), (messages, [5])], 5)
        assert ended.tokens == free.tokens[: free.tokens.index(free.tokens[1]) + 1]
        assert len(other.tokens) >= 1


def test_following_counts_flips_and_divergence(recorded: Recorded) -> None:
    with load_model(recorded[0]) as model:
        (said,) = answer(model, [((), [3, 4])], 4)
        same = follow(model, [3, 4], said)
        assert (same.flips, same.divergence) == (0, pytest.approx(0, abs=1e-6))
        wrong = PromptAnswer((), (3, 4), (said.tokens[0], (said.tokens[1] + 1) % 96), (said.log_probs[0], np.log(0.5)))
        sequence = model.new_sequence()
        model.evaluate(sequence, [3, 4])
        logits = model.evaluate(sequence, [said.tokens[0]]).astype(float)
        q = float(np.exp(logits[wrong.tokens[1]]) / np.exp(logits).sum())
        led = follow(model, [3, 4], wrong)
        assert led.flips == 1
        expected = (0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q))) / 2
        assert led.divergence == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"gemma3.rope.freq_base": f32(9000)}, {"mean KL, float32"}),
        ({"gemma3.attention.layer_norm_rms_epsilon": f32(1e-3)}, {"mean KL, float32"}),
        ({"tokenizer.chat_template": string("{{ messages[-1]['content'] }}")}, {"prompts"}),
        ({"tokenizer.chat_template": string("{{ raise_exception('no') }}")}, {"prompts"}),
        (
            {"tokenizer.ggml.add_bos_token": boolean(True), "tokenizer.ggml.bos_token_id": u32(7)},
            {"tokens of the text"},
        ),
    ],
)
def test_changed_metadata_is_a_regression(
    recorded: Recorded, tmp_path: Path, keys: dict[str, Any], expected: set[str]
) -> None:
    model = write_text_model(tmp_path / "model.gguf", **keys)
    verdict = check(recorded[2], model_path=model)
    assert failures(verdict) >= expected
    assert any("not the file that was recorded" in note for note in verdict.notes)


def test_other_weights_are_a_regression_with_its_reason(recorded: Recorded, tmp_path: Path) -> None:
    verdict = check(recorded[2], model_path=write_text_model(tmp_path / "model.gguf", seed=1))
    assert failures(verdict) >= {"mean KL", "top-1 agreement, %", "mean KL, float32", "KL of answers", "greedy flips"}
    assert verdict.diagnosis.startswith("it is off in float32 too")


def test_a_model_without_template_completes_the_last_message(recorded: Recorded) -> None:
    with load_model(recorded[0]) as model:
        ids = encode_prompts(
            {}, model.tokenizer, [({"role": "system", "content": "x"}, {"role": "user", "content": "Hi"})]
        )
        assert ids == [model.tokenizer.encode("Hi")]


def test_float32_rounding_is_bounded_by_the_matrices_it_goes_through(recorded: Recorded) -> None:
    with load_model(recorded[0]) as model:
        layer = 5 * 32 + 2 * 64  # columns: the width for q, k, v, gate and up; 64 for the heads' output and down
        assert rounding_of(model) == pytest.approx(0.5 * (30 * 2.0**-24) ** 2 * (32 + 3 * layer))


def test_speed_is_sampled_beside_its_probes(recorded: Recorded) -> None:
    speed = Speed(1)
    with load_model(recorded[0]) as model:
        speed.sample(model, 2)
        speed.sample(model, 1)
    assert [len(s) for s in (speed.prefill, speed.decode, speed.copied, speed.computed)] == [3, 3, 3, 3]
    assert speed.relative_decode[0] == sorted(d / c for d, c in zip(speed.decode, speed.copied, strict=True))[1]


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("runs"), "key runs is missing; record a new baseline"),
        (lambda data: data["runs"][0]["text"].pop("losses"), r"key runs\[0\].text.losses is missing"),
        (lambda data: data["runs"][0]["text"]["losses"].pop(), "the lengths of its lists do not match"),
        (lambda data: data["runs"].clear(), "the lengths of its lists do not match"),
        (lambda data: data["speed"]["decode"].pop(), "the lengths of its lists do not match"),
        (lambda data: data["runs"][0]["text"].update(losses="x"), r"runs\[0\].text.losses is \"x\", wanted tuple"),
        (lambda data: data.update(model=3), "model is 3, wanted an object"),
        (lambda data: data.update(version=2), "a baseline of version 2, but this lltool reads version 1"),
        (lambda data: data.update(format="?"), "not a baseline of lltool gate record"),
        (lambda data: data.update(reference="gone.npz"), "gone.npz: missing; it belongs beside"),
        (lambda data: data.update(reference_sha256="0"), "base.npz: not the reference that"),
        (lambda data: data["model"]["shape"].update(block_count=4), "block_count is 3, but 4 in .* of another model"),
        (lambda data: data["model"].update(vocabulary_sha256="0"), "its tokenizer has other tokens than"),
        (lambda data: data["text"].update(sha256="0"), "was recorded on a text of 0; use that text"),
        (
            lambda data: data["text"].update(path="gone.txt"),
            "gone.txt: the text of .* does not exist; name its file with -f",
        ),
    ],
)
def test_bad_baselines_are_named(recorded: Recorded, tmp_path: Path, damage: Damage, message: str) -> None:
    data = json.loads(recorded[2].read_text())
    damage(data)
    path = tmp_path / "base.json"
    path.write_text(json.dumps(data))
    shutil.copy(recorded[2].with_suffix(".npz"), tmp_path)
    with pytest.raises(InputError, match=message):
        check(path)


@pytest.mark.parametrize(
    ("name", "message"), [("base.json", "not JSON, or cut off"), ("base.npz", "or a truncated one")]
)
def test_files_cut_off_are_named(recorded: Recorded, tmp_path: Path, name: str, message: str) -> None:
    for suffix in (".json", ".npz"):
        shutil.copy(recorded[2].with_suffix(suffix), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match=message):
            check(tmp_path / "base.json")


def test_short_texts_and_names_other_than_json_are_refused(recorded: Recorded, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(random_text(511))
    with pytest.raises(InputError, match=r"short.txt: 511 tokens, wanted at least 512 \(8 windows of 64\)"):
        record(recorded[0], text, tmp_path / "base.json", context=64)
    with pytest.raises(InputError, match=r"ends with \.json"):
        record(recorded[0], recorded[1], tmp_path / "base.npz", context=64)
    assert not list(tmp_path.glob("base*"))
