import json
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.tools.cli import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32).view(np.uint8)
    tensor = Tensor("blk.0.attn_q.weight", GGMLType.F32, (8, 64), lambda start, stop: rows[start:stop])
    write_gguf(tmp_path / "model.gguf", Model({"general.architecture": string("llama")}, [tensor]))
    return tmp_path / "model.gguf"


def written_type(path: Path) -> str:
    with open_gguf(path) as file:
        return file.tensors[0].type.name


@pytest.mark.parametrize(
    ("arguments", "name", "type"),
    [
        (["{model}", "q4_0"], "ggml-model-Q4_0.gguf", "Q4_0"),
        (["{model}", "7", "2"], "ggml-model-Q8_0.gguf", "Q8_0"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "wanted IN [OUT] TYPE [NTHREADS]"),
        (["{model}", "Q9"], "file type 'Q9' is not one of F32"),
        (["{model}", "Q4_0", "0"], "NTHREADS is '0'"),
        (["{model}.none", "Q4_0"], "model.gguf.none"),
        (["{model}", "{model}", "Q4_0"], "would overwrite its own source"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", *(word.format(model=model) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("lltool: error: ")
