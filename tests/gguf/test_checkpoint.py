"""Checkpoints in all their forms: one file, shards, `.bin`, the Hub's cache; and what is refused."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lltool.gguf.checkpoint import open_checkpoint
from lltool.gguf.errors import InputError
from lltool.gguf.torch_bin import open_torch


def tensors() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return {f"layer.{n}": torch.randn(4, 8, generator=generator).to(torch.bfloat16) for n in range(5)}


def write_config(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **values}))
    return folder


def write_shards(folder: Path) -> Path:
    from safetensors.torch import save_file

    write_config(folder)
    values = tensors()
    parts = [dict(list(values.items())[:2]), dict(list(values.items())[2:])]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_whole(folder: str | Path) -> None:
    import torch

    checkpoint = open_checkpoint(folder)
    wanted = tensors()
    assert set(checkpoint.files) == set(wanted)
    for name, values in wanted.items():
        assert checkpoint.tensor(name).data().tobytes() == values.view(torch.uint8).numpy().tobytes()


def test_shards(tmp_path: Path) -> None:
    assert_whole(write_shards(tmp_path / "m"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_torch_bin(tmp_path: Path, zipped: bool) -> None:
    import torch

    write_config(tmp_path)
    torch.save(tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_whole(tmp_path)


def test_torch_bin_views(tmp_path: Path) -> None:
    """A transposed tensor, and two that share memory, are read by value."""
    import torch

    write_config(tmp_path)
    base = torch.randn(8, 4)
    torch.save({"t": base.T, "half": base[4:]}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensor("t").read(1, 3).tobytes() == base.T[1:3].contiguous().numpy().tobytes()
    assert checkpoint.tensor("half").data().tobytes() == base[4:].numpy().tobytes()


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_torch_bin_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    write_config(tmp_path)
    torch.save({"w": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors, or is damaged"):
        open_checkpoint(tmp_path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_damaged_torch_bin(tmp_path: Path, zipped: bool, recwarn: pytest.WarningsRecorder) -> None:
    """Whatever torch makes of changed or missing bytes, it is one InputError that names the file."""
    import torch

    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    whole, random = path.read_bytes(), Random(1)
    messages = []
    for turn in range(300):
        damaged = bytearray(whole[: random.randrange(1, len(whole))] if turn % 3 == 0 else whole)
        for _ in range(turn % 5):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            open_torch(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(message.startswith(f"{path}: ") for message in messages)
    assert not recwarn.list


def make_hub_cache(home: Path) -> None:
    """What huggingface_hub's cache holds of `team/model` after a download."""
    repository = home / "hub" / "models--team--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_shards(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_hub_id_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hub_cache(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_whole("team/model")
    checkpoint = open_checkpoint("team/model")
    assert checkpoint.name == "team/model"
    assert checkpoint.revision == "0123456789abcdef0123456789abcdef01234567"
    with pytest.raises(InputError, match="team/other: no such folder; not in the Hub's cache"):
        open_checkpoint("team/other")


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's HTTP interface as a download of `team/model` from `folder` takes."""

    folder: Path
    requests: list[str]
    commit = "a" * 40

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        path = self.path.split("?")[0]
        self.requests.append(f"{self.command} {path.rsplit('/', 1)[1]}")
        names = [file.name for file in self.folder.iterdir()] + ["pytorch_model.bin", "consolidated.safetensors"]
        if "/tree/" in path:
            data = json.dumps([{"type": "file", "path": name, "size": 1, "oid": "b" * 40} for name in names]).encode()
        elif path.startswith("/api/models/team/model"):
            files = [{"rfilename": name} for name in names]
            data = json.dumps({"_id": "1", "id": "team/model", "sha": self.commit, "siblings": files}).encode()
        elif path.startswith("/team/model/resolve/"):
            data = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
        else:
            self.send_response(404)
            self.end_headers()
            return b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        return data


def test_hub_id_is_downloaded(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    FakeHub.folder, FakeHub.requests = write_shards(tmp_path / "m"), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from lltool.gguf.checkpoint import open_checkpoint as o; c = o('team/model'); print(len(c.files), c.revision)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    server.shutdown()
    assert run.stdout == f"5 {FakeHub.commit}\n", run.stderr
    fetched = {line.removeprefix("GET ") for line in FakeHub.requests if line.startswith("GET ")}
    assert "model-00001-of-00002.safetensors" in fetched
    assert not fetched & {"pytorch_model.bin", "consolidated.safetensors"}


def test_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match=r"weights are quantized \(fp8\), not supported yet"):
        open_checkpoint(tmp_path)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: missing"):
        open_checkpoint(tmp_path)
    write_config(tmp_path)
    with pytest.raises(InputError, match="no weights: wanted"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(InputError, match="a file; wanted a checkpoint's folder"):
        open_checkpoint(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="found a JSON list, wanted an object"):
        open_checkpoint(tmp_path)


def test_bad_index(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    for weight_map, message in (
        ([], "wanted weight_map"),
        ({**good, "layer.9": good["layer.0"]}, "layer.9: is not in model-00001-of-00002.safetensors"),
        ({**good, "layer.0": "../secret.safetensors"}, "wanted a file name without folders"),
        ({**good, "layer.0": "model-9.safetensors"}, r"model-9\.safetensors: No such file"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=message):
            open_checkpoint(folder)
