import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.importance import Importance, write_importance
from lltool.tools.cli import main

NAME = "blk.0.attn_q.weight"
COUNT = np.ones(1, np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32).view(np.uint8)
    tensor = Tensor(NAME, GGMLType.F32, (8, 64), lambda start, stop: rows[start:stop])
    write_gguf(tmp_path / "model.gguf", Model({"general.architecture": string("llama")}, [tensor]))
    return tmp_path / "model.gguf"


def written_type(path: Path) -> str:
    with open_gguf(path) as file:
        return file.tensors[0].type.name


@pytest.mark.parametrize(
    ("arguments", "name", "type"),
    [
        (["{model}", "q4_0"], "model-Q4_0.gguf", "Q4_0"),
        (["{model}", "7", "2"], "model-Q8_0.gguf", "Q8_0"),
        (["{model}", "{folder}/out.gguf", "Q5_1"], "out.gguf", "Q5_1"),
        (["--pure", "{model}", "{folder}/out.gguf", "Q5_0", "1"], "out.gguf", "Q5_0"),
        (["{model}", "--pure", "{folder}/out.gguf", "Q4_1"], "out.gguf", "Q4_1"),
    ],
)
def test_argument_order_is_llama_quantizes(
    arguments: list[str], name: str, type: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", *(word.format(model=model, folder=model.parent) for word in arguments)]) == 0
    assert written_type(model.parent / name) == type
    assert capsys.readouterr().out.strip() == str(model.parent / name)


def test_dry_run_writes_nothing_and_reports(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--dry-run", "--json", str(model), "Q8_0"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["bytes"], report["source_bytes"], report["path"]) == (8 * 2 * 34, 8 * 64 * 4, None)
    assert report["tensors"][0]["type"] == "Q8_0"
    assert "F32 -> Q8_0" in captured.err
    assert [path.name for path in model.parent.iterdir()] == ["model.gguf"]


def test_several_types_go_beside_the_source_or_to_a_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "out"
    folder.mkdir()
    assert main(["quantize", "--json", str(model), str(folder), "Q8_0,q5_1", "2"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["path"] for report in reports] == [str(folder / f"model-{t}.gguf") for t in ("Q8_0", "Q5_1")]
    assert [written_type(Path(report["path"])) for report in reports] == ["Q8_0", "Q5_1"]
    assert main(["quantize", str(model), "Q4_0,Q4_1"]) == 0
    assert capsys.readouterr().out.split() == [str(model.parent / f"model-{t}.gguf") for t in ("Q4_0", "Q4_1")]


def test_a_recipe_is_shown_and_given(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--show-recipe", "q4_k"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith('version = 1\nname = "Q4_K_M"\n')
    recipe = model.parent / "mine.toml"
    recipe.write_text(shown.replace('name = "Q4_K_M"', 'name = "mine"').replace('base = "Q4_K"', 'base = "Q5_0"'))
    given = [[str(model), str(recipe)], ["--recipe", str(recipe), str(model), "1"]]
    for arguments in given:
        assert main(["quantize", *arguments]) == 0
        assert capsys.readouterr().out.strip() == str(model.parent / "model-mine.gguf")
        assert written_type(model.parent / "model-mine.gguf") == "Q5_0"


def test_options_reach_the_file(model: Path) -> None:
    types, out = model.parent / "types.txt", model.parent / "out.gguf"
    types.write_text("ffn=q4_0\nATTN_Q=q5_0")
    write_importance(model.parent / "i.gguf", Importance({NAME: np.ones((1, 64), np.float32)}, {NAME: COUNT}, 1, 8))
    options = ["--tensor-type-file", str(types), "--tensor-type", "blk=Q8_0", "--override-kv", "general.name=str:it"]
    guided = ["--imatrix", str(model.parent / "i.gguf")]
    assert main(["quantize", *options, *guided, str(model), str(out), "Q4_1"]) == 2  # ffn matches nothing
    types.write_text("ATTN_Q=q5_0")
    assert main(["quantize", *options, *guided, str(model), str(out), "Q4_1"]) == 0
    with open_gguf(out) as file:
        assert file.tensors[0].type.name == "Q5_0"
        assert file.metadata["general.name"].data == "it"
        assert file.metadata["quantize.imatrix.entries_count"].data == 1


def test_errors_are_shown_and_reported(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "report"
    assert main(["quantize", "--errors", "--report", str(folder), str(model), "Q4_0"]) == 0
    name, type, size, error = capsys.readouterr().out.splitlines()[0].split()
    assert (name, type, size) == (NAME, "Q4_0", "288")
    assert 1e-3 < float(error) < 1e-2
    header, row = (folder / "errors.csv").read_text().splitlines()
    assert header == "file,tensor,layer,part,type,weights,bytes,error"
    assert row.startswith(f"model-Q4_0.gguf,{NAME},0,attn_q,Q4_0,512,288,{float(error):.6f}"[:-1])
    assert (folder / "errors-Q4_0.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "wanted IN [OUT] TYPE [NTHREADS]"),
        (["{model}", "Q9"], "file type 'Q9' is unknown; wanted one of F32"),
        (["{model}", "q4km"], "file type 'q4km' is unknown; did you mean Q4_K_M?"),
        (["{model}", "Q4_0", "0"], "NTHREADS is '0'"),
        (["{model}.none", "Q4_0"], "model.gguf.none"),
        (["{model}", "{model}", "Q4_0"], "would overwrite its own source"),
        (["{model}", "Q8_0,Q9"], "file type 'Q9' is unknown; wanted one of F32"),
        (["{model}", "none/out.gguf", "Q8_0,Q4_0"], "none/out.gguf: not a folder"),
        (["{model}", "{model}.toml"], "no such file"),
        (["{wide}", "IQ2_XS"], "attn_q.weight: IQ2_XS is of no use without importance"),
        (["{wide}", "IQ1_S"], "attn_q.weight: IQ1_S is of no use without importance"),
        (["--tensor-type", "none=Q8_0", "{model}", "Q4_0"], "--tensor-type none=Q8_0: no tensor's name matches"),
        (["--tensor-type", "(=Q8_0", "{model}", "Q4_0"], "tensor type '(=Q8_0': missing )"),
        (["--tensor-type", "Q8_0", "{model}", "Q4_0"], "tensor type 'Q8_0': wanted REGEX=TYPE"),
        (["--tensor-type", "a=Q9", "{model}", "Q4_0"], "tensor type 'a=Q9': 'Q9' is not one of F32"),
        (["--imatrix", "{other}", "{model}", "Q4_0"], "other.gguf: has importance of blk.7.attn_q.weight, which"),
        (["--imatrix", "{narrow}", "{model}", "Q4_0"], "blk.0.attn_q.weight has 32 columns, the model's has 64"),
        (["--imatrix", "{model}", "{model}", "Q4_0"], "model.gguf: not an importance file"),
        (["--include-weights", "a", "{model}", "Q4_0"], "give --imatrix too"),
        (["--imatrix", "i", "--include-weights", "a", "--exclude-weights", "b", "{model}", "7"], "cannot be used tog"),
        (["--prune-layers", "0,9", "{model}", "Q4_0"], "has no layer 9 to prune"),
        (["--prune-layers", "a", "{model}", "Q4_0"], "'a' is not a comma-separated list of numbers"),
        (["--override-kv", "a=b", "{model}", "Q4_0"], "override 'a=b': wanted KEY=TYPE:VALUE"),
        (["{quantized}", "Q4_0"], "attn_q.weight is already Q8_0"),
        (["{model}", "{folder}/none/out.gguf", "Q4_0"], "none: no such folder"),
        (
            ["--strict", "{model}", "Q4_K_M"],
            "rows of 64 are not whole Q4_K blocks of 256; Q5_0 is used instead (+0.0 MiB); drop",
        ),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {key: model.with_name(f"{key}.gguf") for key in ("other", "narrow", "quantized", "wide")}
    if "{wide}" in arguments:
        rows = np.ones((2, 1024), np.uint8)
        wide = Tensor(NAME, GGMLType.F32, (2, 256), lambda start, stop: rows[start:stop])
        write_gguf(files["wide"], Model({}, [wide]))
    for key, name, columns in (("other", "blk.7.attn_q.weight", 64), ("narrow", NAME, 32)):
        values = np.ones((1, columns), np.float32)
        write_importance(files[key], Importance({name: values}, {name: COUNT}, 1, 8))
    if "{quantized}" in arguments:
        main(["quantize", str(model), str(files["quantized"]), "Q8_0"])
    before = sorted(model.parent.iterdir())
    assert main(["quantize", *(word.format(model=model, folder=model.parent, **files) for word in arguments)]) == 2
    assert sorted(model.parent.iterdir()) == before
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("lltool: error: ")


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    """64 million weights."""
    rows = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float16).view(np.uint8)
    tensor = Tensor(NAME, GGMLType.F16, (64, 1024, 1024), lambda start, stop: np.resize(rows, (stop - start, 2048)))
    write_gguf(tmp_path / "large.gguf", Model({}, [tensor]))
    return tmp_path / "large.gguf"


def test_a_disk_that_fills_half_way_is_one_line(large_model: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))

    command = [sys.executable, "-m", "lltool", "quantize", large_model, "Q4_0"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert "large-Q4_0.gguf: a limit on the size of files is reached after " in done.stderr.splitlines()[-1]
    assert list(large_model.parent.iterdir()) == [large_model]


def test_a_buffer_of_a_bare_number_is_bytes_and_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    """Where MiB were meant until sizes got one meaning, a command of then ends with the reason."""
    assert main(["quantize", "--max-buffer-size", "80", "in.gguf", "Q4_0"]) == 2
    assert (
        "'80' is 80 bytes, wanted at least 1MiB; a number without a unit is bytes, not MiB" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("again", [None, 0.0, 0.002, 0.01])  # seconds until the signal comes a second time
def test_stopped_half_way_it_leaves_nothing(large_model: Path, name: str, code: int, again: float | None) -> None:
    command = [sys.executable, "-m", "lltool", "quantize", "--max-buffer-size", "4MiB", large_model, "Q4_K_M", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(
        path.stat().st_size > 1 << 20 for path in large_model.parent.glob(".*/*.gguf")
    ):
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    if again is not None:
        time.sleep(again)
        process.send_signal(signal.Signals[name])
    _, errors = process.communicate()
    assert (process.returncode, errors.splitlines()[-1]) == (code, "lltool: interrupted")
    assert list(large_model.parent.iterdir()) == [large_model]


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_a_source_that_changes_half_way_is_one_line(large_model: Path, change: str) -> None:
    command = [sys.executable, "-m", "lltool", "quantize", "--max-buffer-size", "4MiB", large_model, "Q4_K_M", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(
        path.stat().st_size > 1 << 20 for path in large_model.parent.glob(".*/*.gguf")
    ):
        time.sleep(0.01)
    if change == "cut":
        os.truncate(large_model, 1 << 16)
    else:
        with large_model.open("r+b") as file:
            file.seek(1 << 20)
            file.write(bytes(1 << 20))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith(f"lltool: error: {large_model}: changed while it was read")
    assert list(large_model.parent.iterdir()) == [large_model]
