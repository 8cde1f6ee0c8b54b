"""Checkpoints in all their forms: one file, shards, `.bin`, the Hub's cache; and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lltool.gguf.errors import InputError
from lltool.quant.convert.checkpoint import open_checkpoint
from lltool.quant.convert.torch_bin import open_torch
from tests import hub_server


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
    """Changed or missing bytes cause one InputError that names the file, whatever torch raises."""
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
    """The contents of huggingface_hub's cache after a download of `team/model`."""
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
    with pytest.raises(InputError, match="team/other: no such file or folder, not in the Hub's cache"):
        open_checkpoint("team/other")
    with pytest.raises(InputError, match="team/model:Q4_0: a GGUF model on the Hub, wanted a checkpoint"):
        open_checkpoint("team/model:Q4_0")


def test_hub_id_is_downloaded(tmp_path: Path) -> None:
    """Runs in a separate process, because huggingface_hub reads its environment when it is imported."""
    folder = write_shards(tmp_path / "m")
    for name in ("pytorch_model.bin", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not needed")
    code = "from lltool.quant.convert.checkpoint import open_checkpoint\n"
    code += "c = open_checkpoint('hf.co/team/model'); print(c.name, len(c.files), c.revision)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with hub_server.serve(hub_server.Hub({"team/model": folder})) as hub:
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == f"team/model 5 {hub_server.COMMIT}\n", run.stderr
    assert "model-00001-of-00002.safetensors" in hub.fetched()
    assert not hub.fetched() & {"pytorch_model.bin", "consolidated.safetensors"}


def test_packed_otherwise_than_the_config_says(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    write_config(tmp_path, quantization_config={"quant_method": "fp8"})
    save_file({**tensors(), "layer.9": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"layer\.9: is no plain float, nor packed as .* says \('fp8'\); wanted parts"):
        open_checkpoint(tmp_path)


def test_stale_quantization_config_is_noted(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write_config(tmp_path, quantization_config={"quant_method": "fp8"})
    save_file(tensors(), tmp_path / "model.safetensors")
    assert_whole(tmp_path)
    assert open_checkpoint(tmp_path).notes == [
        "config.json says that weights are quantized ('fp8'), but all are plain floats; used as such"
    ]


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: missing"):
        open_checkpoint(tmp_path)
    write_config(tmp_path)
    with pytest.raises(InputError, match="no weights: wanted"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
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
        (
            {**good, "layer.0": "model-9.safetensors"},
            r"model-9\.safetensors: missing; 1 of the 3 shards in",
        ),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=message):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"adapter_config.json": "{}", "adapter_model.safetensors": ""},
            "holds a LoRA adapter without the model; merge",
        ),
        ({"model_index.json": "{}"}, "holds a diffusers pipeline"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "in its maker's own format"),
        ({"m-Q4_0.gguf": ""}, r"holds GGUF files, which need no conversion \(m-Q4_0\.gguf\)"),
        ({"config.json": "{}", "model-00001-of-00002.safetensors": ""}, "holds shards, but not their index"),
        ({"config.json": "{}", "model.fp16.safetensors": ""}, r"rename it to model\.safetensors"),
        ({"checkpoint-5/config.json": "{}"}, "but its folder checkpoint-5 may; name that folder"),
        ({"config.json": "version https://git-lfs.github.com/spec/v1\n"}, r"config\.json: is a Git LFS pointer"),
        ({"config.json": ""}, r"config\.json: is empty; its download did not finish"),
        ({"config.json": "{}", "model.safetensors": "version https://git-lfs.github.com/spec/v1\n"}, "is a Git LFS p"),
        ({"config.json": "{}", "model.safetensors": ""}, r"model\.safetensors: is empty; its download did not finish"),
        ({"config.json": "{}", "model.safetensors": "<!DOCTYPE html><html>"}, "is a web page, not the file itself"),
        ({"config.json": "{}", "pytorch_model.bin": "version https://git-lfs.github.com/spec/v1\n"}, "Git LFS pointer"),
    ],
)
def test_wrong_files_are_explained(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        open_checkpoint(tmp_path)
    assert str(raised.value).startswith(str(tmp_path))
