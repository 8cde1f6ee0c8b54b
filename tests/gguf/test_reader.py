"""The reader on hand-made bytes: the contents of a good file, and one case for each possible error of a file."""

import ctypes
import gc
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf import mapped
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import ValueType
from lltool.gguf.reader import open_gguf


def text(raw: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: bytes, type: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", type) + payload


def array(item: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + payload


def tensor(name: bytes, sizes: tuple[int, ...] = (32,), type: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, type, offset)


def gguf(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 0,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A whole file, possibly with wrong counts. It has `data` bytes of data, which count up from 0."""
    counts = struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    header = magic + counts + b"".join(keys) + b"".join(tensors)
    return header.ljust(-(-len(header) // 32) * 32, b"\0") + bytes(i % 256 for i in range(data))


GOOD_KEYS = (
    key(b"general.architecture", 8, text(b"llama")),
    key(b"general.alignment", 4, struct.pack("<I", 32)),
    key(b"u8", 0, b"\xff"),
    key(b"i16", 3, struct.pack("<h", -2)),
    key(b"f64", 12, struct.pack("<d", 0.1)),
    key(b"yes", 7, b"\1"),
    key(b"latin", 8, text(b"caf\xe9")),
    key(b"tokens", 9, array(8, 3, text(b"a") + text(b"") + text("ü".encode()))),
    key(b"scores", 9, array(6, 2, struct.pack("<2f", 1.5, -2.0))),
    key(b"flags", 9, array(7, 2, b"\0\1")),
)
GOOD_TENSORS = (tensor(b"second", (32, 2), 2, 64), tensor(b"first", (4,), 0, 0), tensor(b"scalar", (), 0, 128))
GOOD = gguf(GOOD_KEYS, GOOD_TENSORS, 160)


@pytest.fixture
def write(tmp_path: Path):
    def write_bytes(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_bytes


@pytest.mark.parametrize("version", [2, 3])
def test_good_file(write, version: int) -> None:
    with open_gguf(write(gguf(GOOD_KEYS, GOOD_TENSORS, 160, version=version))) as file:
        assert file.version == version
        assert file.alignment == 32
        values = {name: value.data for name, value in file.metadata.items()}
        assert values["general.architecture"] == "llama"
        assert (values["u8"], values["i16"], values["f64"], values["yes"]) == (255, -2, 0.1, True)
        assert values["latin"].encode("utf-8", "surrogateescape") == b"caf\xe9"
        assert list(values["tokens"]) == ["a", "", "ü"]
        assert values["scores"].tolist() == [1.5, -2.0]
        assert values["flags"].tolist() == [False, True]
        assert file.metadata["tokens"].item == ValueType.STRING

        assert [t.name for t in file.tensors] == ["second", "first", "scalar"]
        second = file.tensor("second")
        assert (second.type, second.shape, second.rows, second.row_bytes) == (GGMLType.Q4_0, (2, 32), 2, 18)
        assert second.read(1, 2).tolist() == [list(range(64 + 18, 64 + 36))]
        assert not second.data().flags.owndata
        assert file.tensor("scalar").data().tolist() == [[128, 129, 130, 131]]
        with pytest.raises(InputError, match="has no tensor 'third'"):
            file.tensor("third")


def test_string_array_acts_as_a_sequence(write) -> None:
    strings = open_gguf(write(GOOD)).metadata["tokens"].data
    assert (strings[0], strings[-1], strings[1:], len(strings)) == ("a", "ü", ["", "ü"], 3)
    assert strings.raw(2) == "ü".encode()
    assert "ü" in strings
    assert strings == ["a", "", "ü"]
    assert strings != ["a", "", "u"]
    with pytest.raises(IndexError):
        strings[3]


def test_views_outlive_the_file(write) -> None:
    with open_gguf(write(GOOD)) as file:
        data, tokens = file.tensor("first").data(), file.metadata["tokens"].data
    assert data[0, 15] == 15
    assert tokens[2] == "ü"


def test_a_copy_in_memory_keeps_what_was_read(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_KEPT", 1)  # every window but the last is unmapped
    path = write(GOOD)
    with open_gguf(path, "none") as copy:
        size = path.stat().st_size
        path.write_bytes(b"")
        assert [t.data().tolist() for t in copy.tensors] == [t.data().tolist() for t in copy.tensors]
        assert copy.tensor("first").data()[0, 15] == 15
        assert copy.size == size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_locked_file_stays_in_memory(write) -> None:
    path = write(GOOD)
    try:
        before = locked_bytes()
        with open_gguf(path, "mlock") as file:
            assert locked_bytes() - before >= file.size
    except InputError as error:
        pytest.skip(str(error))
    gc.collect()  # tensors and their readers may form cycles
    assert locked_bytes() == before


def locked_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck:"))
    return int(line.split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="no such limit")
def test_a_file_that_cannot_be_locked_is_an_error_that_names_the_limit(write) -> None:
    code = """
import os, resource, sys
from lltool.gguf.errors import InputError
from lltool.gguf.mapped import MappedFile
with open(sys.argv[1], "rb") as file:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if os.geteuid() == 0:  # root may lock any amount
        os.setuid(65534)
    try:
        MappedFile(file, "mlock")
    except InputError as error:
        print(error)
"""
    path = write(GOOD)
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert re.fullmatch(
        rf"{path}: 0 MiB cannot be locked in memory \([a-z ]+\); the limit, `ulimit -l`, is 0 KiB: raise it or load "
        r"without mlock\n",
        run.stdout,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="cannot see what is cached")
def test_files_are_read_ahead_in_the_background(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(1 << 20))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(map(is_cached, paths)):
        pytest.skip("this file system keeps everything in memory")
    mapped.prefetch([*paths, tmp_path / "missing"])
    deadline = time.monotonic() + 10
    while not all(map(is_cached, paths)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(is_cached, paths))


def is_cached(path: Path) -> bool:
    """Whether all pages of a file are in memory."""
    data = np.memmap(path, np.uint8, "r")
    pages = np.zeros(-(-len(data) // mmap.PAGESIZE), np.uint8)
    arguments = (ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data)), ctypes.c_void_p(pages.ctypes.data))
    assert ctypes.CDLL(None).mincore(*arguments) == 0
    return bool((pages & 1).all())


def one_key(type: int, payload: bytes) -> bytes:
    return gguf((key(b"some.key", type, payload),))


def one_tensor(*sizes: int, type: int = 0, offset: int = 0, data: int = 128) -> bytes:
    return gguf((), (tensor(b"w", sizes, type, offset),), data)


HUGE = 1 << 62
HOSTILE = {
    "empty": (b"", "file is empty"),
    "too short": (b"GG", "not a GGUF file"),
    "other magic": (b"\x7fELF" + bytes(60), "not a GGUF file: it starts with b'\\x7fELF'"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html>", "web page"),
    "zip": (b"PK\x03\x04" + bytes(60), "zip archive"),
    "older format": (b"tjgg" + bytes(60), "before GGUF"),
    "no version": (b"GGUF\3\0", "the version at byte 4 takes 4 bytes, but only 2 are left"),
    "version 1": (gguf(version=1), "GGUF version 1; only versions 2 and 3"),
    "version 4": (gguf(version=4), "GGUF version 4"),
    "version 0": (gguf(version=0), "GGUF version 0"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many keys": (gguf(key_count=1 << 17), "number of keys is 131072, more than the 65536"),
    "huge key count": (gguf(key_count=HUGE), "more than the 65536"),
    "more keys than bytes": (gguf(key_count=60000), "at least 780000 bytes"),
    "huge tensor count": (gguf(tensor_count=HUGE), "number of tensors"),
    "more tensors than bytes": (gguf(tensor_count=60000), "the number of tensors is 60000, which takes at least"),
    "long key": (gguf((key(b"k" * 70000, 0, b"\0"),)), "the length of the name of key 0 is 70000, more than the 65535"),
    "key past the end": (gguf((text(b"k", HUGE) + bytes(20),)), "the length of the name of key 0"),
    "empty key": (gguf((key(b"", 0, b"\0"),)), "the name of key 0 is empty"),
    "key not UTF-8": (gguf((key(b"\xff\xfe", 0, b"\0"),)), "the name of key 0 is not UTF-8"),
    "key twice": (gguf((key(b"k", 0, b"\0"), key(b"k", 0, b"\1"))), "key 'k' appears twice"),
    "unknown value type": (one_key(13, bytes(8)), "'some.key' has value type 13, wanted 0 to 12"),
    "unknown item type": (one_key(9, array(99, 0)), "'some.key' has item type 99"),
    "deep array": (one_key(9, array(9, 1, array(9, 1, array(9, 1, array(9, 1, array(0, 0)))))), "more than 4 deep"),
    "many arrays": (one_key(9, array(9, 70000)), "is 70000, more than the 65536"),
    "arrays past the end": (
        one_key(9, array(9, 9000, array(0, 1, b"\0"))),
        "is 9000, which takes at least 108000 bytes",
    ),
    "bool of 2": (one_key(7, b"\2"), "is the byte 2, wanted 0 or 1"),
    "bool of 3 in array": (one_key(9, array(7, 3, b"\0\1\3")), "holds the byte 3"),
    "string past the end": (
        one_key(8, text(b"x", 1 << 20)),
        "length of the value of key 'some.key' is 1048576, which takes at least",
    ),
    "huge string": (one_key(8, text(b"x", HUGE)), "more than the 268435456"),
    "negative string length": (one_key(8, text(b"x", (1 << 64) - 1)), "more than the"),
    "huge array": (one_key(9, array(0, HUGE)), "more than the 16777216"),
    "array past the end": (one_key(9, array(11, 1000)), "is 1000, which takes at least 8000 bytes"),
    "strings past the end": (one_key(9, array(8, 1000)), "is 1000, which takes at least 8000 bytes"),
    "string in array past the end": (
        one_key(9, array(8, 2, text(b"a") + text(b"b", 1 << 40))),
        "string 1 of 2 ends past",
    ),
    "overflowing string in array": (one_key(9, array(8, 2, text(b"", (1 << 64) - 1) + text(b""))), "past the end"),
    "alignment of wrong type": (gguf((key(b"general.alignment", 5, struct.pack("<i", 32)),)), "INT32, wanted UINT32"),
    "alignment of 0": (gguf((key(b"general.alignment", 4, struct.pack("<I", 0)),)), "general.alignment is 0"),
    "alignment of 24": (gguf((key(b"general.alignment", 4, struct.pack("<I", 24)),)), "a power of two from 8"),
    "huge alignment": (gguf((key(b"general.alignment", 4, struct.pack("<I", 1 << 31)),)), "is 2147483648"),
    "empty tensor name": (gguf((), (tensor(b""),), 128), "the name of tensor 0 is empty"),
    "long tensor name": (gguf((), (tensor(b"n" * 256),), 128), "is 256, more than the 255"),
    "tensor name not UTF-8": (gguf((), (tensor(b"\xff"),), 128), "the name of tensor 0 is not UTF-8"),
    "tensor twice": (gguf((), (tensor(b"w"), tensor(b"w", offset=128)), 256), "tensor 'w' appears twice"),
    "five dimensions": (one_tensor(1, 1, 1, 1, 1), "'w' has 5 dimensions, wanted at most 4"),
    "huge dimension count": (
        gguf((), (text(b"w") + struct.pack("<I", 0xFFFFFFFF) + bytes(20),)),
        "4294967295 dimensions",
    ),
    "zero dimension": (one_tensor(32, 0), "has shape (0, 32), wanted no dimension of 0"),
    "overflowing shape": (one_tensor(HUGE, HUGE, HUGE, HUGE), "the file has"),
    "shape that wraps to a small one": (one_tensor(1 << 32, 1 << 32), "the file has"),
    "unknown tensor type": (one_tensor(32, type=99), "'w' is of type 99, which this version does not know"),
    "removed tensor type": (one_tensor(32, type=31), "type Q4_0_4_4, which was removed"),
    "row of half a block": (one_tensor(48, type=2), "'w': row of 48 is not a multiple of the Q4_0 block of 32"),
    "unaligned offset": (one_tensor(8, offset=8), "offset 8, wanted a multiple of the alignment 32"),
    "offset past the end": (one_tensor(32, offset=1 << 40), "'w' of 128 bytes ends at byte"),
    "huge offset": (one_tensor(32, offset=(1 << 64) - 32), "ends at byte"),
    "cut-off data": (one_tensor(32, data=127), "'w' of 128 bytes ends at byte 192, but the file has 191 bytes"),
    "overlap": (gguf((), (tensor(b"b", offset=96), tensor(b"a")), 256), "tensors 'a' and 'b' overlap at byte"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(write, case: str) -> None:
    content, message = HOSTILE[case]
    path = write(content)
    with pytest.raises(InputError) as caught:
        open_gguf(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_is_one_clear_error(write) -> None:
    needed = 128 + 4 + GOOD.index(bytes(range(160)))  # the scalar ends before the padding does
    for size in range(needed):
        with pytest.raises(InputError):
            open_gguf(write(GOOD[:size]))
    open_gguf(write(GOOD[:needed]))


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, wanted a GGUF file"):
        open_gguf(tmp_path)
    with pytest.raises(InputError, match="/dev/null: a device, wanted a regular file"):
        open_gguf("/dev/null")
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")


def _mutate(content: bytes, rng: random.Random) -> bytes:
    """A truncated copy, or one with flipped bits or with 8-byte fields overwritten with sizes that break arithmetic."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        match rng.randrange(4):
            case 0:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            case 1:
                at = rng.randrange(max(1, len(changed) - 8))
                value = rng.choice([0, 1, 255, 1 << 16, 1 << 24, 1 << 31, 1 << 32, HUGE, (1 << 63) + 1, (1 << 64) - 1])
                changed[at : at + 8] = struct.pack("<Q", value)
            case 2:
                at = rng.randrange(len(changed))
                del changed[at : at + rng.randint(1, 16)]
            case 3:
                changed = changed[: rng.randrange(len(changed)) + 1]
    return bytes(changed)


def test_fuzz(write) -> None:
    """Any change to a valid file leaves it readable or causes an InputError, quickly and with little memory."""
    rng = random.Random(20)
    refused = opened = 0
    end = time.monotonic() + 3
    tracemalloc.start()
    try:
        while time.monotonic() < end or opened <= 100:  # a busy machine needs more time
            content = _mutate(GOOD, rng)
            began = time.monotonic()
            try:
                with open_gguf(write(content)) as file:
                    for value in file.metadata.values():
                        np.asarray(value.data)
                    for each in file.tensors:
                        each.data().sum()
                opened += 1
            except InputError:
                refused += 1
            assert time.monotonic() - began < 1, content
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert min(refused, opened) > 10  # even on a busy machine; an idle one reaches hundreds


def test_streaming_through_a_large_file_keeps_little_of_it_resident(write) -> None:
    size, count = 32 << 20, 24  # 768 MiB, sparse on disk
    tensors = tuple(tensor(b"t%d" % i, (size // 4,), 0, i * size) for i in range(count))
    path = write(gguf((), tensors))
    os.truncate(path, path.stat().st_size + count * size)
    code = f"""
import resource
from lltool.gguf.reader import open_gguf
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for tensor in open_gguf({str(path)!r}).tensors:
    assert tensor.data().max() == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kilobytes = int(run.stdout)
    assert kilobytes < 300 << 10  # the 192 MiB that may stay mapped and a tensor, but not the whole file


def test_a_closed_file_says_so(write) -> None:
    path = write(GOOD)
    file = open_gguf(path)
    file.close()
    with pytest.raises(InputError, match="the file is closed; open it again"):
        file.tensor("w")
