"""Outputs of commands: names follow the source, files of the user are not replaced, inputs must be regular files."""

import json
import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.plan import model_name
from lltool.tools.cli import main
from tests.eval.tiny_text_model import random_text, write_text_model
from tests.killing import kill, make_jobs
from tests.tiny_checkpoints import make_checkpoint

Capture = pytest.CaptureFixture[str]


def write_model(path: Path, seed: int = 0) -> Path:
    rows = np.random.default_rng(seed).standard_normal((8, 64)).astype(np.float32).view(np.uint8)
    tensor = Tensor("blk.0.attn_q.weight", GGMLType.F32, (8, 64), lambda start, stop: rows[start:stop])
    write_gguf(path, Model({"general.architecture": string("llama")}, [tensor]))
    return path


def error_of(capsys: Capture, *arguments: str | Path) -> str:
    """The last line on stderr of a command that fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lltool: error: ")
    return line


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-F16.gguf", "SmolLM2"),
        ("SmolLM2.f16.gguf", "SmolLM2"),
        ("a_bf16.gguf", "a"),
        ("Qwen2.5-1.5B-fp16.gguf", "Qwen2.5-1.5B"),
        ("m-F32-00001-of-00003.gguf", "m"),
        ("m-00002-of-00003.gguf", "m"),
        ("m-Q8_0.gguf", "m-Q8_0"),
        ("plain.gguf", "plain"),
        ("-f16.gguf", "-f16"),
        ("no-ending-f16", "no-ending"),
    ],
)
def test_the_name_without_its_type(file: str, name: str) -> None:
    assert model_name(Path("folder") / file) == name


def test_two_sources_make_two_files(tmp_path: Path) -> None:
    for number, name in enumerate(("one-F16.gguf", "two.gguf")):
        write_model(tmp_path / name, number)
        assert main(["quantize", str(tmp_path / name), "Q4_0"]) == 0
    assert sorted(listing(tmp_path)) == ["one-F16.gguf", "one-Q4_0.gguf", "two-Q4_0.gguf", "two.gguf"]


def test_a_default_name_replaces_only_files_from_the_same_source(tmp_path: Path, capsys: Capture) -> None:
    source, made = write_model(tmp_path / "m-F16.gguf"), tmp_path / "m-Q4_0.gguf"
    assert main(["quantize", str(source), "Q4_0"]) == 0
    first = made.read_bytes()
    assert main(["quantize", str(source), "Q4_0"]) == 0  # of this source
    assert made.read_bytes() == first

    wanted = "m-Q4_0.gguf: exists, and lltool did not make it from this source; name another file, or replace it with"
    other = write_model(tmp_path / "m-BF16.gguf", 1)
    assert wanted in error_of(capsys, "quantize", other, "Q4_0")  # of another name
    write_model(source, 2)
    assert wanted in error_of(capsys, "quantize", source, "Q4_0")  # of another content
    assert made.read_bytes() == first
    assert main(["quantize", "--force", str(source), "Q4_0"]) == 0
    second = made.read_bytes()
    assert second != first

    made.write_bytes(b"mine")
    assert wanted in error_of(capsys, "quantize", source, "Q4_0")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m-Q4_0.gguf").write_bytes(b"mine")  # the folder was named, the file was not
    assert wanted in error_of(capsys, "quantize", source, tmp_path / "out", "Q4_0,Q8_0")
    assert sorted(listing(tmp_path / "out")) == ["m-Q4_0.gguf"]
    assert main(["quantize", str(source), str(made), "Q4_0"]) == 0  # named
    assert made.read_bytes() == second


def test_a_mix_replaces_only_files_from_the_same_source(tmp_path: Path, capsys: Capture) -> None:
    source, text = write_text_model(tmp_path / "m-F32.gguf"), tmp_path / "text.txt"
    text.write_text(random_text(9000))
    mix = ("quantize", "--target", "60000", "--calibration", text, "--probe-tokens", "64", source)
    (tmp_path / "m-mix-60000.gguf").write_bytes(b"mine")
    assert "m-mix-60000.gguf: exists, and lltool did not make it from this source" in error_of(capsys, *mix)
    (tmp_path / "m-mix-60000.gguf").unlink()
    (tmp_path / "m-mix-60000.recipe.toml").write_text("version = 1")
    assert "m-mix-60000.recipe.toml: exists, and is not the recipe of a mix" in error_of(capsys, *mix)
    (tmp_path / "m-mix-60000.recipe.toml").unlink()
    (tmp_path / "m-F32.probes.json").write_text("{}")
    assert "m-F32.probes.json: not a file of probes" in error_of(capsys, *mix)
    (tmp_path / "m-F32.probes.json").unlink()
    for _ in range(2):
        assert main([str(word) for word in mix]) == 0
    assert (tmp_path / "m-mix-60000.gguf").stat().st_size <= 60000
    assert not list(tmp_path.glob(".*"))


def test_conversions_of_the_same_name(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = make_checkpoint("llama", tmp_path / "one" / "tiny")
    two = make_checkpoint("llama", tmp_path / "two" / "tiny", seed=1)
    for _ in range(2):
        assert main(["convert", str(one)]) == 0
    first = listing(tmp_path)
    assert list(first) == ["tiny-F32.gguf"]
    assert "tiny-F32.gguf: exists, and lltool did not make it from this source" in error_of(capsys, "convert", two)
    assert listing(tmp_path) == first
    assert main(["convert", str(two), "--force"]) == 0
    assert listing(tmp_path) != first


def test_importance_of_another_model_in_the_default_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(random_text(160))
    for number, name in enumerate(("one.gguf", "two.gguf")):
        write_text_model(Path(name), seed=number)
    small = ("-f", "text.txt", "-c", "32", "-b", "32")
    assert main(["imatrix", "-m", "one.gguf", *small]) == 0
    before = Path("imatrix.gguf").read_bytes()
    assert "imatrix.gguf: exists, but is not from this job" in error_of(capsys, "imatrix", "-m", "two.gguf", *small)
    assert "imatrix.gguf: exists; name another" in error_of(capsys, "imatrix", "--in-file", "imatrix.gguf")
    assert Path("imatrix.gguf").read_bytes() == before
    assert main(["imatrix", "-m", "two.gguf", *small, "--force"]) == 0
    assert Path("imatrix.gguf").read_bytes() != before
    assert main(["imatrix", "-m", "one.gguf", *small, "-o", "imatrix.gguf"]) == 0  # named
    assert Path("imatrix.gguf").read_bytes() == before


def test_recommend_replaces_nothing_of_the_users(tmp_path: Path, capsys: Capture) -> None:
    source = write_text_model(tmp_path / "m-F32.gguf")
    (tmp_path / "text.txt").write_text(random_text(1100))
    common = (source, "--ram", "1G", "--pure", "--types", "Q4_0", "-f", tmp_path / "text.txt", "-c", "128")
    options = (*common, "-p", "8", "-n", "4", "-r", "1", "-t", "1")
    (tmp_path / "m-Q4_0.gguf").write_bytes(b"mine")
    before = listing(tmp_path)
    wanted = "m-Q4_0.gguf: exists, and lltool did not make it; move it away"
    assert wanted in error_of(capsys, "recommend", *options, "-o", tmp_path)
    assert main(["quantize", "--pure", str(source), str(tmp_path / "m-Q4_0.gguf"), "Q4_0"]) == 0
    before = listing(tmp_path)
    given = (source, tmp_path / "m-Q4_0.gguf", *options[1:])
    assert "m-Q4_0.gguf: is also the name of a file to be made" in error_of(capsys, "recommend", *given, "-o", tmp_path)
    (tmp_path / "report.md").write_text("mine")
    assert "report.md: exists, and is not part of a report of lltool" in error_of(
        capsys, "recommend", *options, "-o", tmp_path
    )
    assert listing(tmp_path) == {**before, "report.md": b"mine"}
    assert "none: no such folder; make it first" in error_of(capsys, "recommend", *options, "-o", tmp_path / "none/x")


def test_a_report_replaces_a_report(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"path": "m.gguf", "file_type": "", "bits_per_weight": 1, "tensors": [], "bytes": 1})
    )
    for _ in range(2):
        assert main(["report", str(tmp_path)]) == 0
    (tmp_path / "mine.csv").write_text("a,b\n")
    assert "mine.csv: exists, and is not part of a report" in error_of(
        capsys, "report", tmp_path, "-o", tmp_path / "mine.html"
    )
    (tmp_path / "report.html").write_text("<p>mine</p>")
    assert "report.html: exists, and is not part of a report" in error_of(capsys, "report", tmp_path)


def test_a_reference_of_the_user_is_not_replaced_by_that_of_a_baseline(tmp_path: Path, capsys: Capture) -> None:
    model, text = write_text_model(tmp_path / "m.gguf"), tmp_path / "text.txt"
    text.write_text(random_text(700))
    (tmp_path / "m.npz").write_bytes(b"mine")
    record = ("gate", "record", "-m", model, "-f", text, "-o", tmp_path / "m.json", "-c", "64", "--chunks", "4")
    assert "m.npz: exists, and is not the reference of " in error_of(capsys, *record)
    assert (tmp_path / "m.npz").read_bytes() == b"mine"


def test_no_output_replaces_a_measured_file(tmp_path: Path, capsys: Capture) -> None:
    model, text = write_text_model(tmp_path / "m.gguf"), tmp_path / "text.csv"
    text.write_text(random_text(200))
    before = listing(tmp_path)
    for option, path in (
        ("--write-reference", model),
        ("--kl-divergence-base", model),
        ("--write-reference", text),
        ("--losses", text),
    ):
        found = error_of(capsys, "perplexity", "-m", model, "-f", text, "-c", "32", option, path)
        assert f"{path.name}: would overwrite its own source" in found
    assert listing(tmp_path) == before


def test_links_devices_and_modes(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf")
    target, link = tmp_path / "target.gguf", tmp_path / "link.gguf"
    target.write_bytes(b"")
    target.chmod(0o640)
    link.symlink_to(target)
    assert main(["quantize", str(source), str(link), "Q4_0"]) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    with open_gguf(target) as file:
        assert file.tensors[0].type == GGMLType.Q4_0

    assert main(["quantize", str(source), os.devnull, "Q4_0"]) == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert main(["quantize", str(source), str(pipe), "Q4_0"]) == 0
    reader.join()
    assert read == [target.read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_output_with_a_name_of_255_bytes(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf")
    target = tmp_path / f"{'x' * 250}.gguf"
    assert main(["quantize", str(source), str(target), "Q4_0"]) == 0
    assert target.stat().st_size > 0


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "--imatrix", "{odd}", "m.gguf", "out.gguf", "Q4_0"),
        ("quantize", "{odd}", "out.gguf", "Q4_0"),
        ("quantize", "m.gguf", "out.gguf", "odd.toml"),
        ("imatrix", "--in-file", "{odd}", "-o", "out.gguf"),
        ("imatrix", "-m", "m.gguf", "-f", "text.txt", "-c", "32", "-o", "{odd}"),
        ("perplexity", "-m", "m.gguf", "--reference", "{odd}", "-f", "text.txt"),
        ("perplexity", "-m", "m.gguf", "--kl-divergence-base", "{odd}", "--kl-divergence"),
        ("gate", "check", "{odd}"),
        ("bench", "compare", "{odd}", "{odd}"),
        ("bench", "history", "--db", "{odd}"),
        ("inspect", "{odd}"),
        ("convert", "config", "-o", "out.gguf"),
        ("convert", "weights", "-o", "out.gguf"),
        ("convert", "tokenizer", "-o", "out.gguf"),
    ],
)
def test_inputs_that_are_not_regular_files(
    arguments: tuple[str, ...], kind: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused at once; reading the pipe would wait forever, and the device has no end."""
    monkeypatch.chdir(tmp_path)
    write_text_model(Path("m.gguf"))
    Path("text.txt").write_text(random_text(200))

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    make(Path("odd"))
    make(Path("odd.toml"))
    if arguments[0] == "convert":
        name = {"config": "config.json", "weights": "model.safetensors", "tokenizer": "tokenizer.json"}[arguments[1]]
        make(make_checkpoint("llama", tmp_path / arguments[1]) / name)
    found = error_of(capsys, *(argument.format(odd="odd") for argument in arguments))
    assert f"a {kind}" in found or "a pipe or device" in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "convert --resume", "quantize", "set", "imatrix", "gate record"])
def test_killed_at_a_random_moment(name: str, tmp_path: Path) -> None:
    """`python -m tests.killing FOLDER 100` does more of the same."""
    job = next(job for job in make_jobs(tmp_path) if job.name == name)
    outcome = kill(job, tmp_path / "runs", 3, random.Random(name))
    assert (outcome.kills, outcome.faults) == (3, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "name"),
    [("-o", "i.gguf"), ("--losses", "l.csv"), ("--write-reference", "r.npz"), ("--kl-divergence-base", "l.bin")],
)
def test_a_limit_on_the_size_of_files_is_one_line(option: str, name: str, tmp_path: Path) -> None:
    write_text_model(tmp_path / "m.gguf")
    (tmp_path / "text.txt").write_text(random_text(2000))
    before = listing(tmp_path)
    command = "imatrix" if option == "-o" else "perplexity"
    words = [sys.executable, "-m", "lltool", command, "-m", "m.gguf", "-f", "text.txt", "-c", "32", option, name]
    limited = ["bash", "-c", 'ulimit -f 1 && exec "$@"', "limited", *words]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{name}: a limit on the size of files is reached" in done.stderr.splitlines()[-1]
    assert listing(tmp_path) == before
    assert not list(tmp_path.glob(".lltool-*"))
