"""Quantizing to a size: targets, saved evidence, mixes against all other mixes, and whole runs on tiny models."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.engine.segments import find_cuts, parallel_batch, part_until
from lltool.eval.search import best_mix
from lltool.eval.search.best_mix import Target, _rival, add_output, parse_target, quantize_to_target
from lltool.eval.search.sensitivity import run_logits
from lltool.eval.search.target import Evidence, find_mix, measure_errors, quantizable
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.choose import Options
from lltool.quant.codec import decode, encode
from lltool.quant.guidance import Guidance
from lltool.quant.importance import Importance
from lltool.quant.plan import NOTHING_MORE, plan_quantization
from lltool.quant.quantize import file_bytes
from lltool.quant.recipes import find_recipe, read_recipe
from tests.engine import tiny_gguf

TEXT = "".join(chr(32 + i * i % 64) for i in range(9000))


class Letters:
    """A tokenizer of one token a letter."""

    bos, add_bos, tokens = None, False, ()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % tiny_gguf.VOCAB for letter in text]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Model, "tokenizer", Letters())
    monkeypatch.setattr(best_mix, "JUDGED_CONTEXT", 64)
    return tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("900MB", Target(bytes=900_000_000)),
        ("1.5GiB", Target(bytes=3 << 29)),
        ("2g", Target(bytes=2_000_000_000)),
        ("105447456", Target(bytes=105447456)),
        ("4.5bpw", Target(bits=4.5)),
        ("4 BPW", Target(bits=4.0)),
        ("q4_k_m", Target(recipe=find_recipe("Q4_K_M"))),
        ("15", Target(recipe=find_recipe("15"))),  # a file type's number: no file has so few bytes
    ],
)
def test_targets(text: str, expected: Target) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "900XB", "-3MB", "4.5", "bpw", "Q9_K"])
def test_bad_targets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="wanted a size"):
        parse_target(text)


def test_errors_are_weighted_sums_of_squares(tiny: Path) -> None:
    with open_gguf(tiny) as file:
        tensor = file.tensor("blk.0.attn_q.weight")
        weights = decode(tensor.data(), tensor.type)
        means = np.linspace(0.1, 3, tensor.columns, dtype=np.float32)[None]
        errors, plain = measure_errors(tensor, means), measure_errors(tensor, None)
    assert {"Q4_0", "Q8_0", "IQ4_NL"} <= errors.keys()
    assert not errors.keys() & {"F16", "Q4_K", "Q8_1"}  # floats, blocks wider than the rows, types of activations
    for name in ("Q4_0", "Q8_0"):
        made = decode(encode(weights, GGMLType[name], means[0]), GGMLType[name])
        assert errors[name] == pytest.approx(float(((weights - made) ** 2 * means).sum()), rel=1e-4)
        made = decode(encode(weights, GGMLType[name]), GGMLType[name])
        assert plain[name] == pytest.approx(float(((weights - made) ** 2).sum()), rel=1e-4)


def test_the_mix_is_the_best_of_all(tiny: Path) -> None:
    with open_gguf(tiny) as file:
        tensors = quantizable(file)[:4]
    random = np.random.default_rng(0)
    evidence = Evidence({})
    for tensor in tensors:
        evidence.divergences[tensor.name] = float(random.random())
        evidence.errors[tensor.name] = {"Q4_0": 1.0, "Q4_1": 0.5 + random.random(), "Q8_0": 0.01}
    types = [GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0, GGMLType.F32]
    size = {
        t: {type: t.rows * t.columns * bits // 8 for type, bits in zip(types, (4.5, 5, 8.5, 32), strict=True)}
        for t in tensors
    }

    def cost(combination: tuple[GGMLType, ...]) -> float:
        errors = [evidence.errors[t.name].get(type.name, 0.0) for t, type in zip(tensors, combination, strict=True)]
        return sum(evidence.divergences[t.name] * error for t, error in zip(tensors, errors, strict=True))

    smallest = sum(size[t][GGMLType.Q4_0] for t in tensors)
    for budget in (smallest, smallest * 1.3, smallest * 2, smallest * 10):
        mix = find_mix(tensors, evidence, int(budget))
        fitting = [
            combination
            for combination in product(types, repeat=len(tensors))
            if sum(size[t][type] for t, type in zip(tensors, combination, strict=True)) <= budget
        ]
        assert mix.bytes <= budget
        assert mix.predicted == pytest.approx(min(map(cost, fitting)))
        assert cost(tuple(mix.types.values())) == pytest.approx(mix.predicted)
    with pytest.raises(InputError, match=f"take {smallest:.0f}"):
        find_mix(tensors, evidence, int(smallest) - 1)


def test_evidence_is_found_again_under_its_key(tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    first = Evidence({"model": "a"}, path)
    first.divergences["x"] = 0.5
    first.errors["x"] = {"Q4_0": 2.0}
    first.save()
    assert Evidence({"model": "a"}, path).divergences == {"x": 0.5}
    assert Evidence({"model": "b"}, path).divergences == {}
    path.write_text("{")
    with pytest.raises(InputError, match="not a file of probes"):
        Evidence({"model": "a"}, path)


def test_a_file_of_so_many_bytes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 60_000
    calls: list[tuple[int, int]] = []
    run: dict[str, Any] = {"probes": tmp_path / "probes.json", "tokens": 64, "threads": 1}
    outcome = quantize_to_target(tiny, tmp_path / "out.gguf", Target(bytes=budget), TEXT, **run)
    assert budget - 2000 < (tmp_path / "out.gguf").stat().st_size <= budget
    assert outcome.verdict is not None
    assert outcome.kept == (outcome.verdict.gain > 0)
    assert outcome.verdict.gain == pytest.approx(outcome.verdict.plain.mean - outcome.verdict.mix.mean)
    with open_gguf(tmp_path / "out.gguf") as file:
        made = {tensor.name: tensor.type for tensor in file.tensors}
    assert made == {choice.tensor.name: choice.type for choice in outcome.plan.choices}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["tiny.gguf", "out.gguf", "probes.json"] + (["out.recipe.toml"] if outcome.kept else [])
    )

    # The probes serve the next search, for another size, too.
    monkeypatch.setattr("lltool.eval.search.target.measure_errors", lambda *_: calls.append((0, 0)))
    again = quantize_to_target(tiny, tmp_path / "two.gguf", Target(bits=6.0), TEXT, **run)
    assert not calls
    assert again.plan.bits_per_weight <= 6.0 or not again.kept
    probes = json.loads((tmp_path / "probes.json").read_text())
    assert len(probes["divergences"]) == len(quantizable(open_gguf(tiny)))


def test_the_rival_is_the_best_of_recipes_and_pure_types(tiny: Path) -> None:
    """If types with more bits lose less, the rival is the recipe or type that uses the most of the bytes."""
    with open_gguf(tiny) as file:
        errors = {type.name: layout.block / layout.bytes for type, layout in LAYOUT.items()}
        names = [tensor.name for tensor in quantizable(file)]
        evidence = Evidence({}, None, dict.fromkeys(names, 1.0), dict.fromkeys(names, errors))
        for budget, wanted in ((1 << 30, "F32"), (20_000, None)):
            rival, found = _rival(file, Target(bytes=budget), evidence, NOTHING_MORE)
            assert (rival and rival[0], found) == (wanted, budget)
        pure = plan_quantization(file, find_recipe("Q4_0"), Options(pure=True), NOTHING_MORE)
        rival, _ = _rival(file, Target(bytes=file_bytes(pure)), evidence, NOTHING_MORE)
        assert rival is not None
        assert rival[0].startswith("--pure")


def test_only_what_beats_the_plain_recipe_is_kept(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(gain: float) -> Any:
        def judge(*paths: object, **_: object) -> best_mix.MixGain:
            return best_mix.MixGain(None, None, gain, 0.0)  # type: ignore[arg-type]

        return judge

    target = Target(recipe=find_recipe("Q5_0"))
    for gain, name in ((0.1, "better.gguf"), (-0.1, "worse.gguf")):
        monkeypatch.setattr(best_mix, "measure_gain", judged(gain))
        outcome = quantize_to_target(tiny, tmp_path / name, target, TEXT, tokens=64, threads=1)
        types = {choice.tensor.name: choice.type for choice in outcome.plan.choices}
        assert outcome.rival == "Q5_0"
        assert outcome.kept == (gain > 0)
        assert (tmp_path / name).stat().st_size <= outcome.budget
        assert (tmp_path / name).with_suffix(".recipe.toml").exists() == (gain > 0)
        if gain > 0:
            assert {name: types[name] for name in outcome.mix.types} == outcome.mix.types
            recipe = read_recipe(tmp_path / "better.recipe.toml")
            with open_gguf(tiny) as file:
                chosen = plan_quantization(file, recipe).choices
            assert {choice.tensor.name: choice.type for choice in chosen} == types
        else:
            assert types["blk.0.ffn_up.weight"] == GGMLType.Q5_0


def test_compensated_rounding(tiny: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {"tokens": 64, "threads": 1}
    for name, compensated in (("plain.gguf", 0), ("compensated.gguf", 1024)):
        quantize_to_target(tiny, tmp_path / name, Target(bytes=59_000), TEXT, compensated=compensated, **run)
    with open_gguf(tmp_path / "plain.gguf") as first, open_gguf(tmp_path / "compensated.gguf") as second:
        assert [tensor.type for tensor in first.tensors] == [tensor.type for tensor in second.tensors]
        same = {
            tensor.name: np.array_equal(tensor.data(), second.tensor(tensor.name).data()) for tensor in first.tensors
        }
    assert same["token_embd.weight"]  # no matrix of the body
    assert not same["blk.1.ffn_down.weight"]


def test_the_output_gets_importance(tiny: Path) -> None:
    importance = Importance(
        {"blk.0.ffn_up.weight": np.ones((1, 32), np.float32)}, {"blk.0.ffn_up.weight": np.ones(1)}, 1, 1
    )
    windows = np.random.default_rng(0).integers(0, tiny_gguf.VOCAB, (2, 64)).astype(np.int32)
    made = add_output(Guidance(tiny, importance), tiny, windows, 1)
    assert made.importance.sums.keys() == {"blk.0.ffn_up.weight", "token_embd.weight"}
    program = load_model(tiny, precision="f32").program
    batch, pages = parallel_batch(windows, np.arange(windows.size))
    x = run_logits(part_until(program, find_cuts(program)[-1]), batch, pages, 1).astype(float)
    gain = tiny_gguf.tensors()["output_norm.weight"]
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    assert made.importance.means("token_embd.weight")[0] == pytest.approx((normed**2).mean(axis=0), rel=1e-4)
    assert add_output(made, tiny, windows, 1) is made


def test_bad_requests(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file of 9,000 bytes is impossible: its smallest types take 43,136;"):
        quantize_to_target(tiny, tmp_path / "out.gguf", Target(bytes=9000), TEXT, tokens=64, threads=1)
    with pytest.raises(InputError, match="100 tokens, wanted at least"):
        quantize_to_target(tiny, tmp_path / "out.gguf", Target(bytes=60000), TEXT[:100], tokens=64)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
