"""Files that change while they are mapped cause an error, where the system would kill the process."""

import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf import _native, mapped
from lltool.gguf.errors import FileChanged, InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.mapped import MappedFile
from lltool.gguf.source import Tensor
from lltool.quant.convert.safetensors import open_safetensors, write_safetensors
from lltool.quant.convert.torch_bin import open_torch

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE + 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * SIZE)
    return path


def open_mapped(path: Path) -> MappedFile:
    with path.open("rb") as file:
        return MappedFile(file)


def test_a_truncated_part_reads_as_zeros_and_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_mapped(path)
    file.check_unchanged()
    os.truncate(path, 10 * PAGE)
    assert file.data[: 10 * PAGE].min() == 1
    assert file.data[10 * PAGE :].max() == 0
    with pytest.raises(FileChanged, match=f"{path}: changed while it was read, from {SIZE} bytes to {10 * PAGE}; "):
        file.check_unchanged()
    monkeypatch.setattr(mapped, "_CHECKED", 10)
    assert file.window(0, 9).min() == 1
    with pytest.raises(FileChanged):
        file.window(0, 10)


def test_zeros_are_not_written_to_a_file_that_grows_again(path: Path) -> None:
    file = open_mapped(path)
    os.truncate(path, 0)
    assert file.data.max() == 0
    path.write_bytes(b"\2" * SIZE)
    assert path.read_bytes() == b"\2" * SIZE


def test_many_threads_read_the_missing_pages_at_once(path: Path) -> None:
    file = open_mapped(path)
    start, sums = threading.Barrier(9), [0] * 8

    def add_up(index: int) -> None:
        start.wait()
        sums[index] = int(file.data[index :: 8 * PAGE].sum())

    threads = [threading.Thread(target=add_up, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    os.truncate(path, 1)
    start.wait()
    for thread in threads:
        thread.join()
    assert sums == [1, 0, 0, 0, 0, 0, 0, 0]


def test_a_page_that_cannot_be_read_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_mapped(path)
    monkeypatch.setattr(_native, "has_faulted", lambda id: True)
    with pytest.raises(FileChanged, match="cannot be read any more"):
        file.check_unchanged()


def test_a_file_written_to_is_an_error(path: Path) -> None:
    file = open_mapped(path)
    status = path.stat()
    with path.open("r+b") as other:
        other.write(b"\3")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(FileChanged, match="changed while it was read; start again"):
        file.check_unchanged()


def test_a_file_that_is_replaced_or_removed_is_still_whole(path: Path, tmp_path: Path) -> None:
    file = open_mapped(path)
    (tmp_path / "other").write_bytes(b"another")
    (tmp_path / "other").rename(path)
    assert file.window(0, SIZE).min() == 1
    path.unlink()
    file.check_unchanged()


def test_closing_releases_descriptors_and_the_last_view_releases_the_mapping(path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def is_mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    before = descriptors()
    file = open_mapped(path)
    view = file.data[5:7]
    file.close()
    file.close()
    assert is_mapped()
    assert view.tolist() == [1, 1]
    del view
    assert not is_mapped()
    assert descriptors() == before
    with pytest.raises(InputError, match="the file is closed"):
        file.window(0, 1)
    open_mapped(path)
    assert (descriptors(), is_mapped()) == (before, False)


def test_a_watch_ends_with_its_memory(path: Path) -> None:
    numbers = set()
    for _ in range(20):
        file = open_mapped(path)
        numbers.add(file._watched._guards[0])
        file.close()
    assert len(numbers) == 1
    with pytest.raises(ValueError, match="no such range"):
        _native.unwatch(1)


def test_other_bus_errors_end_the_process_as_before(path: Path) -> None:
    code = f"""
import mmap, os, sys
from lltool.gguf.mapped import MappedFile
with open({str(path)!r}, "rb") as file:
    ours, theirs = MappedFile(file), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate({str(path)!r}, 0)
print(ours.data[-1], flush=True)
theirs[-1] if sys.argv[1] == "fault" else os.kill(os.getpid(), 7)
"""
    for cause in ("fault", "sent"):
        path.write_bytes(b"\1" * SIZE)
        done = subprocess.run([sys.executable, "-c", code, cause], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (-signal.SIGBUS, "0\n")
        path.write_bytes(b"\1" * SIZE)
        done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code, cause], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (-signal.SIGBUS, "0\n")
        assert done.stderr.startswith("Fatal Python error: Bus error\n")


def test_checkpoints_that_change_are_errors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = np.ones((300, 1000), np.float32)
    tensor = Tensor("x", GGMLType.F32, values.shape, lambda start, stop: values[start:stop].view(np.uint8))
    write_safetensors(tmp_path / "x.safetensors", [tensor], lambda count: None)
    torch.save({"x": torch.ones(300, 1000)}, tmp_path / "x.bin")
    for path, opener in ((tmp_path / "x.safetensors", open_safetensors), (tmp_path / "x.bin", open_torch)):
        opened = opener(path)
        tensor = opened.tensor("x")
        whole = tensor.data()
        assert whole.view(np.float32).min() == 1
        os.truncate(path, PAGE)
        assert whole.view(np.float32)[-1].max() == 0
        with pytest.raises(FileChanged, match="changed while it was read"):
            tensor.data()
        with pytest.raises(FileChanged, match="changed while it was read"):
            opened.check_unchanged()
