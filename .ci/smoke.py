"""Checks an installed lltool, in any environment: python .ci/smoke.py

It makes a tiny random model, quantizes and runs it with the command line as a user would, and compares the native code
with the reference executor. It imports nothing of the repository, and fails if lltool is not an installed copy.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lltool
from lltool.engine.model import load_model
from lltool.gguf import optional
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import ValueType, array, f32, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant import _native, isa

WIDTH, FEED_FORWARD, HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 64
TOKENS = ["Ġ", *map(chr, range(33, 127)), "Ċ"]
LLTOOL = Path(sys.executable).parent / "lltool"


def make_model(path: Path) -> Path:
    """A Llama whose vocabulary is the printable ASCII characters, a token each, with random weights."""
    keys = {
        "general.architecture": string("llama"),
        "llama.context_length": u32(CONTEXT),
        "llama.block_count": u32(LAYERS),
        "llama.embedding_length": u32(WIDTH),
        "llama.feed_forward_length": u32(FEED_FORWARD),
        "llama.attention.head_count": u32(HEADS),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, TOKENS),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.ones(len(TOKENS), np.int32)),
        "tokenizer.ggml.merges": array(ValueType.STRING, []),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}_norm.weight": (WIDTH,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (FEED_FORWARD, WIDTH) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (WIDTH, FEED_FORWARD)
    random = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        values = np.ones(shape) if len(shape) == 1 else random.normal(size=shape) / 8
        rows = values.astype(np.float32).reshape(-1, shape[-1]).view(np.uint8)
        return Tensor(name, GGMLType.F32, shape, lambda start, stop: rows[start:stop])

    write_gguf(path, Model(keys, [tensor(name, shape) for name, shape in shapes.items()]))
    return path


def run(*arguments: object, code: int = 0) -> str:
    """What a command printed on stdout or, where it is to fail, on stderr."""
    done = subprocess.run([LLTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.returncode, done.stderr)
    return done.stderr if code else done.stdout


def generate(path: Path, *options: object) -> str:
    text = run("run", "-m", path, "--raw", "-p", "smoke", "-n", 24, "--temp", 0, "--json", *options)
    return str(json.loads(text)["text"])


def check_values(path: Path) -> None:
    """Logits of every instruction set that this processor has, against the numpy executor."""
    wanted = logits(path, executor="reference")
    for name in _native.available_isas():
        np.testing.assert_allclose(logits(path, instruction_set=name), wanted, rtol=1e-3, atol=1e-3, err_msg=name)


def logits(path: Path, **options: Any) -> NDArray[np.float32]:
    with load_model(path, precision="f32", **options) as model:
        return model.evaluate(model.new_sequence(), list(range(20)))


def main() -> None:
    modules = Path(optional.__file__).resolve().parent
    assert modules != Path(__file__).resolve().parent.parent / "gguf", f"{modules}: the checkout, not an installed copy"
    assert run("--version") == f"lltool {version('lltool')}\n" == f"lltool {lltool.__version__}\n"
    for command in ("convert", "quantize", "run", "bench"):
        assert f"\n  {command} " in run("--help")
        assert run(command, "--help").startswith(f"usage: lltool {command}")
    missing = [package for package in optional.EXTRAS if _is_missing(package)]
    with tempfile.TemporaryDirectory() as folder:
        model, small = make_model(Path(folder, "tiny.gguf")), Path(folder, "tiny-Q8_0.gguf")
        run("quantize", model, small, "Q8_0")
        types = {tensor["type"] for tensor in json.loads(run("inspect", small, "--json"))["tensors"]}
        assert types == {"F32", "Q8_0"}, types
        check_values(small)
        text = generate(small)
        assert len(text) == 24, text
        assert text == generate(small)
        if "matplotlib" in missing:
            assert "pip install 'lltool[plot]'" in run("bench", "-m", small, "--plot", "speed.png", code=2)
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"Python {python}, {isa.chosen()}, {Path(_native.__file__ or '').name}: works; without {', '.join(missing)}")


def _is_missing(package: str) -> bool:
    try:
        version(package.replace("_", "-"))
    except ModuleNotFoundError:  # of which PackageNotFoundError is one
        return True
    return False


if __name__ == "__main__":
    main()
