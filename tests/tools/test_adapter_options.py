"""The options --lora and --lora-scaled of the commands that run a model."""

import json
from pathlib import Path

import pytest

from lltool.tools.adapter_arguments import add_adapter_arguments
from lltool.tools.cli import main
from lltool.tools.parser import CommandParser
from tests.engine import tiny_gguf
from tests.engine.tiny_adapters import factors, merged, write_adapter

KEYS = tiny_gguf.metadata() | tiny_gguf.vocabulary()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", []),
        ("--lora a.gguf", [("a.gguf", 1.0)]),
        ("--lora a.gguf,b.gguf --lora-scaled c.gguf:0.5,d.gguf:-2", [("a.gguf", 1), ("b.gguf", 1), ("c.gguf", 0.5),
            ("d.gguf", -2)]),
        ("--lora-scaled a.gguf 0.5 --lora b.gguf", [("a.gguf", 0.5), ("b.gguf", 1)]),
        ("--lora-scaled a.gguf -0.5 word", [("a.gguf", -0.5)]),
    ],
)  # fmt: skip
def test_spellings(line: str, wanted: list[tuple[str, float]]) -> None:
    parser = CommandParser()
    parser.add_argument("words", nargs="*")
    add_adapter_arguments(parser)
    found = parser.parse_args(line.split())
    assert found.lora == [(Path(name), scale) for name, scale in wanted]
    assert found.words == (["word"] if "word" in line else [])


@pytest.mark.parametrize("line", ["--lora-scaled a.gguf", "--lora-scaled a.gguf x", "--lora a,,b"])
def test_bad_spellings(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "model.gguf", *line.split()]) == 2
    assert "--lora" in capsys.readouterr().err


def test_perplexity_with_an_adapter_is_that_of_the_merged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = factors()
    adapter = write_adapter(tmp_path / "a.gguf", made)
    base = tiny_gguf.write_model(tmp_path / "base.gguf", KEYS, tiny_gguf.tensors())
    whole = tiny_gguf.write_model(tmp_path / "merged.gguf", KEYS, merged((made, 4.0)))
    (tmp_path / "text.txt").write_text("".join(chr(33 + i * i % 90) for i in range(300)))

    def perplexity(*options: str) -> float:
        line = ["-f", str(tmp_path / "text.txt"), "-c", "64", "--precision", "f32", "--format", "json"]
        assert main(["perplexity", *options, *line]) == 0
        return float(json.loads(capsys.readouterr().out)["perplexity"])

    found = perplexity("-m", str(base), "--lora-scaled", str(adapter), "0.5")
    assert found == pytest.approx(perplexity("-m", str(whole)), rel=1e-4)
    assert found != pytest.approx(perplexity("-m", str(base)), rel=1e-2)


def test_a_reference_is_without_the_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", factors())
    base = tiny_gguf.write_model(tmp_path / "base.gguf", KEYS, tiny_gguf.tensors())
    (tmp_path / "text.txt").write_text("".join(chr(33 + i * i % 90) for i in range(300)))
    line = ["-m", str(base), "--reference", str(base), "-f", str(tmp_path / "text.txt"), "-c", "64"]
    divergence = []
    for scale in ("0", "1"):
        assert main(["perplexity", *line, "--lora-scaled", f"{adapter}:{scale}", "--format", "json"]) == 0
        divergence.append(json.loads(capsys.readouterr().out)["divergence"]["mean"])
    assert abs(divergence[0]) < 1e-9 < 1e-3 < divergence[1]


def test_an_adapter_that_is_none_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_gguf.write_model(tmp_path / "base.gguf", KEYS, tiny_gguf.tensors())
    assert main(["run", "-m", str(base), "-p", "a", "--lora", str(base)]) == 2
    error = capsys.readouterr().err.strip()
    assert "found a model, wanted a LoRA adapter" in error
    assert "\n" not in error


def test_a_server_of_several_models_takes_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tiny_gguf.write_model(tmp_path / f"{n}.gguf", KEYS, tiny_gguf.tensors()) for n in "ab"]
    assert main(["serve", *map(str, paths), "--lora", "a.gguf"]) == 2
    assert "--lora: adapters belong to one model, and 2 are served" in capsys.readouterr().err
