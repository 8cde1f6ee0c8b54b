"""What is known of models before they are fetched: memory of GGUF models and checkpoints on the Hub, from headers."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lltool.eval.selection.unfetched import open_header
from lltool.gguf import remote_header
from lltool.gguf.reader import open_gguf
from lltool.gguf.writer import write_gguf
from lltool.quant.convert.conversion import convert
from lltool.tools.cli import main
from tests.gguf.test_hub import use
from tests.hub_server import Hub, Ranged, serve
from tests.tiny_checkpoints import make_checkpoint

SIZES = {"hidden_size": 256, "intermediate_size": 1024}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    checkpoint = make_checkpoint("llama", folder / "checkpoint", dtype="bfloat16", **SIZES)
    (folder / "gguf").mkdir()
    convert(checkpoint, folder / "gguf" / "m-Q8_0.gguf", "Q8_0")
    (folder / "shards").mkdir()
    with open_gguf(folder / "gguf" / "m-Q8_0.gguf") as file:
        write_gguf(folder / "shards" / "m-Q8_0.gguf", file, shard_tensors=12)
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub({f"team/{path.name}": path for path in folder.iterdir()})) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.mark.parametrize("name", ["gguf", "shards"])
@pytest.mark.parametrize("first", [64, 1000, 1 << 20])  # bytes; the header has some thousands
def test_headers_and_vectors_are_those_of_the_file(
    name: str, first: int, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_header, "_FIRST", first)
    received = 0

    def count(ranged: Ranged) -> bool:
        nonlocal received
        received += ranged.stop - ranged.start
        return False

    hub.misbehave = count
    with open_header(f"team/{name}:q8_0") as known, open_gguf(folder / "gguf" / "m-Q8_0.gguf") as file:
        assert known.bytes == sum(path.stat().st_size for path in (folder / name).iterdir())
        assert [(t.name, t.type, t.shape) for t in known.source.tensors] == [
            (t.name, t.type, t.shape) for t in file.tensors
        ]
        for ours, wanted in zip(known.source.tensors, file.tensors, strict=True):
            if len(wanted.shape) == 1:
                np.testing.assert_array_equal(ours.data(), wanted.data())
        assert known.source.metadata.keys() - {"split.no"} == file.metadata.keys()
    if first < 1 << 20:
        assert received < known.bytes / 4
    assert not any("m-Q8_0" in path.name for path in Path().glob("*"))


@pytest.mark.parametrize(("name", "local"), [("team/gguf", "gguf/m-Q8_0.gguf"), ("team/checkpoint", "checkpoint")])
def test_fit_of_a_name_on_the_hub_is_that_of_the_file(
    name: str, local: str, hub: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for outtype in ("auto", "Q4_K_M") if "checkpoint" in name else ("auto",):
        reports = []
        for which in (name, str(folder / local)):
            assert main(["fit", which, "--outtype", outtype, "-c", "128", "--json"]) in (0, 1)
            reports.append(json.loads(capsys.readouterr().out))
        assert {**reports[0], "available": 0} == {**reports[1], "available": 0}
        if "checkpoint" in name:
            made = convert(folder / local, tmp_path / "m.gguf", outtype)
            assert abs(reports[0]["weights"] - made.stat().st_size) <= 4096  # the id is longer than the folder's name
    cached = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not any(file.endswith((".gguf", ".safetensors")) for file in cached)
    assert main(["fit", "team/nothing"]) == 2
    assert "the Hub has no such model" in capsys.readouterr().err.splitlines()[-1]
