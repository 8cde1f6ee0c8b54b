"""Our safetensors reader and writer against the safetensors library, and all errors of damaged headers."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Tensor
from lltool.quant.convert.safetensors import open_safetensors, write_safetensors


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).to(torch.bfloat16),
        "c": torch.randn(2, 3, 4).to(torch.float16),
        "ids": torch.arange(4),
    }
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    file = open_safetensors(tmp_path / "m.safetensors")
    assert set(file.entries) == set(tensors)
    for name, type in (("a", GGMLType.F32), ("b", GGMLType.BF16), ("c", GGMLType.F16)):
        tensor = file.tensor(name)
        assert (tensor.type, tensor.shape) == (type, tuple(tensors[name].shape))
        assert tensor.data().tobytes() == tensors[name].view(torch.uint8).numpy().tobytes()
    assert file.tensor("a").read(1, 3).tobytes() == tensors["a"][1:].numpy().tobytes()
    with pytest.raises(InputError, match="ids: type I64 is not supported; wanted F32, F16, BF16"):
        file.tensor("ids")


def test_writes_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    """Vectors of odd lengths come before types that they would misalign, and names out of order."""
    import torch
    from safetensors.torch import save_file

    types = {
        GGMLType.F16: torch.float16,
        GGMLType.BF16: torch.bfloat16,
        GGMLType.F32: torch.float32,
        GGMLType.F64: torch.float64,
    }
    theirs, ours = {}, []
    for index, type in enumerate(types):
        for name, shape in ((f"w.{9 - index}", (3, 4)), (f"é.{index}", (5,)), (f"a.{index}", (2, 3, 5))):
            values = torch.randn(shape).to(types[type])
            rows = values.reshape(-1, shape[-1]).view(torch.uint8).numpy()
            theirs[name] = values
            ours.append(Tensor(name, type, shape, lambda start, stop, rows=rows: rows[start:stop]))  # type: ignore[misc]
    written: list[int] = []
    write_safetensors(tmp_path / "ours.safetensors", ours, written.append)
    save_file(theirs, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert sum(written) == sum(values.nbytes for values in theirs.values())


GOOD = entry(0, 8, [2])
ERRORS: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": (b"{nope", b"", "header is not JSON"),
    "deep JSON": (b"[" * 100_000, b"", "header is not JSON"),
    "not an object": ([1], b"", "header is a JSON list"),
    "entry without shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8), "a: wanted dtype, shape"),
    "entry not an object": ({"a": 3}, b"", "a: wanted dtype, shape"),
    "unknown dtype": ({"a": entry(0, 8, [2], "F99")}, bytes(8), "a: unknown dtype 'F99'"),
    "negative shape": ({"a": entry(0, 8, [-1, -2])}, bytes(8), "wanted positive integers"),
    "huge shape": ({"a": entry(0, 8, [2**60, 2**60])}, bytes(8), "wanted positive integers"),
    "shape of floats": ({"a": entry(0, 8, [2.0])}, bytes(8), "wanted positive integers"),  # type: ignore[list-item]
    "bytes not those of the shape": ({"a": entry(0, 8, [3])}, bytes(8), r"bytes 0 to 8, but F32 of shape \[3\] has 12"),
    "negative offset": ({"a": entry(-8, 0, [2])}, b"", "bytes -8 to 0"),
    "overlap": ({"a": GOOD, "b": entry(4, 12, [2])}, bytes(12), "b: starts at byte .* before ends at"),
    "gap": ({"a": GOOD, "b": entry(12, 20, [2])}, bytes(20), "b: starts at byte .* before ends at"),
    "cut off": ({"a": GOOD}, bytes(7), "cut off or damaged"),
    "bytes left over": ({"a": GOOD}, bytes(9), "cut off or damaged"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_damaged_header_is_refused(case: str, tmp_path: Path) -> None:
    header, data, message = ERRORS[case]
    with pytest.raises(InputError, match=message):
        open_safetensors(write(tmp_path / "m.safetensors", header, data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1234567", "7 bytes, too short"),
        (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 50) + b"{}", "the file has 2 after the length"),
    ],
)
def test_bad_length_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_safetensors(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        open_safetensors(tmp_path / "none.safetensors")


def test_streaming_in_any_order_keeps_little_of_a_large_file_resident(tmp_path: Path) -> None:
    size, count = 32 << 20, 24  # 768 MiB, sparse on disk
    header = {f"t{i}": entry(i * size, (i + 1) * size, [1024, size // 4096]) for i in range(count)}
    path = write(tmp_path / "m.safetensors", header)
    os.truncate(path, path.stat().st_size + count * size)
    code = f"""
import pathlib, resource
from lltool.quant.convert.safetensors import open_safetensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file = open_safetensors(pathlib.Path({str(path)!r}))
for i in range({count}):
    tensor = file.tensor(f"t{{i * 7 % {count}}}")
    for start in range(0, 1024, 256):
        assert tensor.read(start, start + 256).max() == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200 << 10  # KiB: the windows that stay mapped, but not the whole file
