"""Whole models on a device: logits of transformers, layers on both sides, commands, and what cannot be done."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.gpu import placement as module
from lltool.engine.gpu.device import DeviceInfo
from lltool.engine.gpu.opencl import BUILD_LOG, OpenCLDevice
from lltool.engine.gpu.placement import Placement, choose_device, count_fitting, device_bytes
from lltool.engine.model import load_model
from lltool.gguf.errors import InputError
from lltool.tools.cli import main
from tests.engine import tiny_gguf
from tests.engine.models.test_architectures import assert_close, make_case, prompt

# Between them, they have every operation that devices have kernels for, but for those of encoders.
CASES = [
    "llama",
    "mixtral, window 64",
    "gemma3, window 64",
    "deepseek v3",
    "gpt-oss, window 64",
    "phi 3.5 moe, window 64",
    "llama 4, chunks of 70",
    "mpt, eight heads",
    "glm 4.5",
]
Case = tuple[Path, NDArray[np.float32]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return cache(lambda case: make_case(case, tmp_path_factory.mktemp("checkpoint")))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(checkpoint: Callable[[str], Case], device_name: str, case: str) -> None:
    """A long prompt at once; then two sequences in turns, a fork and a shortened one beside each other."""
    path, wanted = checkpoint(case)
    text = prompt()
    with load_model(path, placement=Placement("all", device_name), precision="f32", sequences=4, context=400) as model:
        sequence = model.new_sequence()
        assert_close(model.forward([(sequence, text, "all")]).all(), wanted)
        sequence.free()
        first, second = model.new_sequence(), model.new_sequence()
        model.forward([(first, text[:90], "all"), (second, text[:1], "all")])
        found = model.forward([(first, text[90:92], "all"), (second, text[1:70], "all")]).all()
        assert_close(found, np.concatenate([wanted[90:92], wanted[1:70]]))
        fork = first.fork()
        first.truncate(70)
        found = model.forward([(fork, text[92:95], "all"), (first, text[70:75], "all")]).all()
        assert_close(found, np.concatenate([wanted[92:95], wanted[70:75]]))
        assert_close(model.evaluate(fork, [int(text[95])]), wanted[95])


@pytest.mark.parametrize(("layers", "executor"), [(1, "cpu"), (2, "cpu"), (1, "reference")])
def test_layers_on_both_sides(checkpoint: Callable[[str], Case], device_name: str, layers: int, executor: str) -> None:
    path, wanted = checkpoint("llama")
    text = prompt()
    placed = Placement(layers, device_name)
    with load_model(path, executor=executor, placement=placed, precision="f32", sequences=2) as model:
        first = model.new_sequence()
        assert_close(model.forward([(first, text[:70], "all")]).all(), wanted[:70])
        fork = first.fork()
        found = model.forward([(first, text[70:71], "all"), (fork, text[70:80], "all")]).all()
        assert_close(found, np.concatenate([wanted[70:71], wanted[70:80]]))


def tiny(folder: Path, **keys: Any) -> Path:
    metadata = tiny_gguf.metadata() | tiny_gguf.vocabulary() | keys
    return tiny_gguf.write_model(folder / "tiny.gguf", metadata, tiny_gguf.tensors())


def test_auto_takes_as_many_layers_as_fit(tmp_path: Path) -> None:
    """Of a model with three layers: all, the last two, or none."""
    with load_model(tiny(tmp_path), context=64) as model:
        setup, program = model.setup, model.program
        whole = device_bytes(program, setup)
        assert count_fitting(program, setup, int(whole / module.RESERVE) + 1) == 3
        assert count_fitting(program, setup, int(whole / module.RESERVE) - 1) == 2
        assert count_fitting(program, setup, 1000) == 0


def test_commands(tmp_path: Path, device_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny(tmp_path)
    line = [str(path), "abc", "-n", "4", "--temp", "0", "-q"]
    assert main(["run", *line]) == 0
    wanted = capsys.readouterr().out
    for layers in ("all", "auto", "1"):
        assert main(["run", *line, "--device", device_name, "-ngl", layers]) == 0
        assert capsys.readouterr().out == wanted

    bench = ["bench", "-m", str(path), "-p", "8", "-n", "2", "-r", "1", "-t", "1", "--no-history", "-o", "json"]
    assert main([*bench, "-ngl", "0,99", "--device", device_name]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = choose_device(device_name)
    assert found is not None
    assert [(row["n_gpu_layers"], row["backends"], row["gpu_info"], row["devices"]) for row in rows] == [
        *2 * [(0, "CPU", "", "none")],
        *2 * [(99, "OpenCL", found.name, device_name)],
    ]

    assert main(["devices"]) == 0
    assert found.name in capsys.readouterr().out
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == device_name


def test_without_a_gpu_all_layers_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_devices", list)
    line = ["run", str(tiny(tmp_path)), "abc", "-n", "1", "-ngl", "99"]
    assert main(line) == 0
    assert "note: -ngl 99: no GPU was found (`lltool devices` lists devices), so all layers" in capsys.readouterr().err
    assert main([*line, "--device", "opencl:0"]) == 2
    assert "--device opencl:0: no such device; found: none; an OpenCL driver and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device opencl:77", "--device opencl:77: no such device; found: opencl:0"),
        ("-ngl some", "argument -ngl/--gpu-layers/--n-gpu-layers: 'some', wanted a number of layers, auto or all"),
        ("-ngl -3", "'-3', wanted a number of layers, auto or all"),
        ("-ngl all -ctk q8_0", "-ctk q8_0: a GPU keeps its cache in f32, f16, bf16; or use -ngl 0"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, device_name: str, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", str(tiny(tmp_path)), "abc", "-n", "1", "--device", device_name, *options.split()]
    assert main(line) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1 or "usage" in err


@pytest.mark.slow
def test_a_recurrent_model_names_what_is_missing(checkpoint: Callable[[str], Case], device_name: str) -> None:
    path, _ = checkpoint("mamba2, one group")
    with pytest.raises(InputError, match="no GPU kernel for the operation Convolution, Scan, which this model needs"):
        load_model(path, placement=Placement("all", device_name))


def test_a_kernel_that_does_not_compile_and_too_little_memory(device_name: str) -> None:
    device = OpenCLDevice(int(device_name.partition(":")[2]))
    with pytest.raises(InputError, match="the driver could not compile a kernel; its messages are in"):
        device.prepare("nonsense", "none", [1], [1], ())
    assert "nonsense" in BUILD_LOG.read_text()
    with pytest.raises(InputError, match=r"ask for fewer layers \(-ngl\) or a smaller context \(-c\)"):
        device.allocate(2**50)
    device.close()


def test_a_model_on_a_device_whose_file_is_cut_gives_no_more_logits(tmp_path: Path, device_name: str) -> None:
    """In a process of its own: a driver installs its handlers of signals once. The file is mapped before."""
    path = tiny(tmp_path)
    program = f"""
import os
from lltool.engine.gpu.placement import Placement
from lltool.engine.model import load_model
from lltool.gguf.errors import FileChanged

with load_model({str(path)!r}, placement=Placement("all", {device_name!r}), context=64) as model:
    sequence = model.new_sequence()
    model.evaluate(sequence, [1, 2, 3])
    os.truncate({str(path)!r}, 4096)
    try:
        model.evaluate(sequence, [4])
    except FileChanged:
        print("told")
        os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


def test_devices_are_gpus_first_and_others_have_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = DeviceInfo("opencl:0", "a processor", "driver", 2**30, is_gpu=False)
    gpu = DeviceInfo("opencl:1", "a card", "driver", 2**30, is_gpu=True)
    monkeypatch.setattr(module, "find_devices", lambda: [cpu, gpu])
    assert choose_device() == gpu
    assert choose_device("opencl:0") == cpu
    monkeypatch.setattr(module, "find_devices", lambda: [cpu])
    assert choose_device() is None


@pytest.mark.slow
def test_a_real_model(real_model: Callable[[str], Path], device_name: str) -> None:
    """SmolLM2: the same greedy text, and the same probabilities of a text, as in float32 on the CPU."""
    path = real_model("smollm2-q4_1")
    text = "The sun rises in the east, and the river runs down to the sea, where ships wait for the wind."
    scores, texts = [], []
    whole, part = Placement("all", device_name), Placement(7, device_name)
    for placed, precision in ((None, "f32"), (whole, "int8"), (part, "f32")):
        with load_model(path, placement=placed, precision=precision, context=256) as model:
            ids = model.tokenizer.encode(text)
            sequence = model.new_sequence()
            logits = model.forward([(sequence, ids, "all")]).all().astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            picked = logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits[:-1]).sum(axis=1))
            scores.append(picked.mean())
            made: list[int] = []
            for _ in range(8):
                made.append(int(model.evaluate(sequence, made[-1:] or ids[-1:]).argmax()))
            texts.append(made)
    assert scores[1:] == pytest.approx([scores[0]] * 2, rel=2e-3)
    assert texts[1:] == [texts[0]] * 2
