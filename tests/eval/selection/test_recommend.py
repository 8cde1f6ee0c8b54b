"""Recommendations on a tiny model: which files are made, measured, chosen, kept, and left out."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lltool.eval.bench.machine.footprint import Footprint
from lltool.eval.selection import recommend as recommend_module
from lltool.eval.selection import survey as survey_module
from lltool.eval.selection.recommend import Wishes, recommend
from lltool.eval.selection.runs import read_runs
from lltool.eval.selection.survey import Questions
from lltool.gguf.errors import InputError
from lltool.quant.choose import Options
from lltool.quant.plan import Plan
from lltool.quant.recipe_language import Recipe
from lltool.tools.cli import main
from tests.eval.tiny_text_model import random_text, write_text_model

CACHE = 2 * 3 * 2 * (16 * 2 + 4) * 128  # keys and values, layers, heads, bytes of a head (16 bits and a scale), tokens
OVERHEAD = 5_000_000
TYPES = ("Q8_0", "Q4_0")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, and memory besides file and cache that is the same on every machine."""
    held = Footprint(1.0, 1.0, None, CACHE + OVERHEAD)
    monkeypatch.setattr(survey_module, "measure_footprint", lambda *_: held)
    (tmp_path / "text.txt").write_text(random_text(400))
    return write_text_model(tmp_path / "tiny-F32.gguf")


def questions(source: Path) -> Questions:
    texts = (source.with_name("text.txt"),)
    return Questions(texts, window=64, threads=(1,), prompt=8, generation=4, repetitions=1)


def ask(source: Path, ram: int = 10**9, **options: Any) -> recommend_module.Recommendation:
    wishes = Wishes(ram, 128, options.pop("preference", "quality"))
    given = {"types": TYPES, "options": Options(pure=True), "questions": questions(source)} | options
    return recommend(source, source.with_name("out"), wishes, **given)


def test_what_is_made_and_measured(source: Path) -> None:
    told: list[tuple[int, int]] = []
    found = ask(source, progress=lambda done, total, _: told.append((done, total)))
    entries = {entry.name: entry for entry in found.runs.entries}
    assert list(entries) == ["F32", "Q8_0", "Q4_0"]
    for name, entry in entries.items():
        path = source if name == "F32" else source.with_name("out") / f"tiny-{name}.gguf"
        assert entry.path == str(path)
        assert entry.bytes == path.stat().st_size
        assert entry.memory == entry.bytes + CACHE + OVERHEAD
        assert {test for test, _ in entry.speeds} == {"pp8", "tg4"}
    losses = [entry.divergence[0] for entry in entries.values() if entry.divergence]
    assert losses[0] == 0 < losses[1] < losses[2]
    assert found.choice.candidate.name == "F32"  # loses least
    assert (found.path, found.context, found.ram) == (source, 128, 10**9)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == 8  # quantize, three files on a text, memory of each, speed


def test_a_second_run_makes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(source)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second run makes nothing")

    monkeypatch.setattr(recommend_module, "write_plans", refuse)
    for name in ("perplexity", "divergences", "measure_points", "measure_footprint"):
        monkeypatch.setattr(survey_module, name, refuse)
    assert ask(source).choice == first.choice
    with pytest.raises(AssertionError):
        ask(source, questions=replace(questions(source), repetitions=2))
    entries = read_runs(source.with_name("out")).entries  # what is kept is what `lltool report` reads
    assert [(entry.name, entry.memory) for entry in entries] == [(e.name, e.memory) for e in first.runs.entries]


def test_one_more_type_takes_one_more_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(source)
    made: list[list[str]] = []
    write = recommend_module.write_plans

    def watch(plans: Any, targets: Any, **options: Any) -> Any:
        made.append([plan.recipe.name for plan in plans])
        return write(plans, targets, **options)

    monkeypatch.setattr(recommend_module, "write_plans", watch)
    assert len(ask(source, types=(*TYPES, "Q5_0", "Q5_1")).runs.entries) == 5
    assert made == [["Q5_0", "Q5_1"]]  # from one read


def test_files_that_do_not_fit_are_neither_made_nor_chosen(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "measure_footprint", lambda *_: Footprint(1.0, 1.0, None, CACHE + 1000))
    ask(source)
    sizes = {path.name: path.stat().st_size for path in source.with_name("out").glob("*.gguf")}
    for path in source.with_name("out").iterdir():
        path.unlink()
    found = ask(source, sizes["tiny-Q8_0.gguf"] + CACHE + 1000)
    assert found.choice.candidate.name == "Q8_0"
    f32 = found.runs.entries[0]
    assert (f32.name, f32.bytes, f32.qualities.keys() != set(), f32.speeds) == ("F32", source.stat().st_size, True, {})
    assert f32.memory == source.stat().st_size + CACHE

    found = ask(source, sizes["tiny-Q8_0.gguf"] + CACHE + 999)  # one byte less
    assert found.choice.candidate.name == "Q4_0"
    for path in source.with_name("out").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="nothing fits 30,000 bytes: Q4_0, the smallest, takes "):
        ask(source, 30_000)
    assert not list(source.with_name("out").glob("*.gguf"))


def test_existing_files_are_measured_too(source: Path) -> None:
    alone = ask(source, types=())
    assert "the only one that fits" in alone.choice.reason
    ask(source)
    other = (source.with_name("out") / "tiny-Q4_0.gguf").rename(source.with_name("tiny-mine.gguf"))
    found = ask(source, types=(), others=[other])
    assert [entry.name for entry in found.runs.entries] == ["F32", "mine"]


def test_types_that_cannot_be_made_are_named_before_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = recommend_module.plan_quantization

    def refuse_some(file: Any, recipe: Recipe, *rest: Any) -> Plan:
        if recipe.name == "IQ2_XXS":
            raise InputError("of no use without importance")
        return plan(file, recipe, *rest)

    monkeypatch.setattr(recommend_module, "plan_quantization", refuse_some)
    said: list[str] = []
    found = ask(source, types=("Q4_K_M", "IQ2_XXS", "Q8_0"), options=Options(), say=said.append)
    assert "IQ2_XXS is left out: of no use without importance" in said
    assert any(line.startswith("Q4_K_M: ") and "rows of 32" in line for line in said)
    assert [entry.name for entry in found.runs.entries] == ["F32", "Q8_0", "Q4_K_M"]
    with pytest.raises(InputError, match="of no use without importance"):
        ask(source, types=("IQ2_XXS",))
    with pytest.raises(InputError, match="is already Q8_0"):
        ask(source.with_name("out") / "tiny-Q8_0.gguf", types=("Q4_0",), questions=questions(source))


def test_the_command(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = source.with_name("text.txt")
    text.write_text(random_text(1100))  # windows of 512
    options = ["-f", str(text), "-c", "128", "-t", "1", "-p", "8", "-n", "4", "-r", "1", "--ram", "1G"]
    command = ["recommend", str(source), "--types", "Q8_0,Q4_0", "--pure", "--prefer", "quality", *options]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = source.with_name("tiny-F32-quants")
    assert lines[0].startswith("| file ")
    assert [line.split("|")[1].split()[0] for line in lines[2:5]] == ["F32", "Q8_0", "Q4_0"]
    assert re.match(r"F32 takes \d\.\d\d MiB of 953\.67 MiB and generates ", lines[8])
    assert lines[10:] == [str(source), *(str(folder / f"report.{end}") for end in ("html", "md", "csv", "png"))]
    assert lines[8] in (folder / "report.html").read_text()
    assert "lltool recommend" in (folder / "report.md").read_text()
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["choice"], report["path"], report["ram"], report["context"]) == ("F32", str(source), 10**9, 128)
    assert [file["name"] for file in report["files"]] == ["F32", "Q8_0", "Q4_0"]
    assert report["files"][1]["text.txt divergence"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf"], "none.gguf"),
        (["{source}", "--ram", "lots"], "lots"),
        (["{source}", "--ram", "0"], "--ram"),
        (["{source}", "--ram", "-3G"], "--ram"),
        (["{source}", "--ram", "1K", "--pure", "--types", "Q4_0"], "nothing fits"),
        (["{source}", "--ram", "1G", "-c", "100000"], "the model was made for 512"),
        (["{source}", "--ram", "1G", "--types", "Q9_9"], "Q9_9"),
        (["{source}", "--ram", "1G", "--report", "{source}/report.html"], "tiny-F32.gguf: no such folder"),
        (["{source}", "--ram", "1G", "-o", "{source}"], "tiny-F32.gguf"),
        (["{source}", "--ram", "1G", "-f", "{source}"], "not UTF-8"),
        (["{source}", "--ram", "1G", "-f", "{text}"], "400 tokens, wanted at least 1024"),
        (["{source}", "--prefer", "luck"], "luck"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"source": source, "text": source.with_name("text.txt")}
    assert main(["recommend", *(argument.format(**paths) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.startswith("lltool: error: ")
    assert error.count("\n") == 1
