"""Files that are read whole: unsuitable ones are refused at once."""

import os
import threading
from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import open_regular, read_bytes


def test_regular_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"{}\n")
    assert read_bytes(file) == b"{}\n"
    assert read_bytes(file, limit=3) == b"{}\n"


def test_limit(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    file.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(InputError, match=r"large\.json: has more than 1 MiB"):
        read_bytes(file, limit=1 << 20)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, wanted a file"):
        open_regular(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
@pytest.mark.parametrize("or_pipe", [False, True])
def test_device(or_pipe: bool) -> None:
    with pytest.raises(InputError, match="/dev/zero: a device, wanted a regular file"):
        read_bytes(Path("/dev/zero"), or_pipe=or_pipe)


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe: a pipe, wanted a regular file"):
        read_bytes(pipe)


def test_pipe_with_a_text(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"some text",))
    writer.start()
    assert read_bytes(pipe, or_pipe=True) == b"some text"
    writer.join()
