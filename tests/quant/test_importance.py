"""Importance files in both formats, and files that are not importance files."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import string, u32
from lltool.quant.importance import Importance, merge, read_importance, write_dat, write_importance
from tests.conftest import GoldenFile

ATTENTION, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def small_importance() -> Importance:
    return Importance(
        {
            ATTENTION: np.array([[2, 4, 6]], np.float32),
            EXPERTS: np.array([[3, 6], [0, 0], [1, 1]], np.float32),
        },
        {ATTENTION: np.array([2], np.float32), EXPERTS: np.array([3, 0, 1], np.float32)},
        chunk_count=1,
        chunk_size=2,
        datasets=("first.txt", "second.txt"),
    )


def assert_same(found: Importance, wanted: Importance) -> None:
    assert found.sums.keys() == wanted.sums.keys()
    for name in wanted.sums:
        np.testing.assert_array_equal(found.sums[name], wanted.sums[name])
        np.testing.assert_array_equal(found.counts[name], wanted.counts[name])
    assert (found.chunk_count, found.chunk_size, found.datasets) == (
        wanted.chunk_count,
        wanted.chunk_size,
        wanted.datasets,
    )


def test_gguf_files_come_back(tmp_path: Path) -> None:
    write_importance(tmp_path / "imatrix.gguf", small_importance())
    assert_same(read_importance(tmp_path / "imatrix.gguf"), small_importance())


def test_a_file_of_llama_imatrix_is_written_back_byte_for_byte(golden_file: GoldenFile, tmp_path: Path) -> None:
    source = golden_file("imatrix/smollm2-imatrix.gguf")
    importance = read_importance(source)
    assert (importance.chunk_count, importance.chunk_size, importance.datasets) == (40, 512, ("text/calib.txt",))
    assert len(importance.sums) == 210
    write_importance(tmp_path / "imatrix.gguf", importance)
    assert (tmp_path / "imatrix.gguf").read_bytes() == source.read_bytes()


def test_means_are_one_where_an_expert_saw_no_token() -> None:
    np.testing.assert_array_equal(small_importance().means(ATTENTION), [[1, 2, 3]])
    np.testing.assert_array_equal(small_importance().means(EXPERTS), [[1, 2], [1, 1], [1, 1]])


def test_dat_files_keep_the_means(tmp_path: Path) -> None:
    write_dat(tmp_path / "imatrix.dat", small_importance())
    found = read_importance(tmp_path / "imatrix.dat")
    np.testing.assert_array_equal(found.means(ATTENTION), [[1, 2, 3]])
    np.testing.assert_array_equal(found.means(EXPERTS), [[1, 2, 1, 1, 1, 1]])  # the format has no experts
    assert (found.chunk_count, found.chunk_size, found.datasets) == (1, 0, ("second.txt",))
    assert found.counts[EXPERTS] == [2]  # ceil(3 tokens / 2 per chunk)


def test_dat_layout_is_llama_imatrixs(tmp_path: Path) -> None:
    importance = small_importance().select(include=["attn"])
    write_dat(tmp_path / "imatrix.dat", importance)
    name, dataset = ATTENTION.encode(), b"second.txt"
    assert (tmp_path / "imatrix.dat").read_bytes() == (
        struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii3f", 1, 3, 1, 2, 3)
        + struct.pack("<ii", 1, len(dataset)) + dataset
    )  # fmt: skip
    without_trailer = (tmp_path / "imatrix.dat").read_bytes()[: -8 - len(dataset)]
    (tmp_path / "old.dat").write_bytes(without_trailer)
    assert read_importance(tmp_path / "old.dat").datasets == ()


def test_entries_are_selected_by_parts_of_names() -> None:
    importance = small_importance()
    assert list(importance.select(include=["attn"]).sums) == [ATTENTION]
    assert list(importance.select(exclude=["attn"]).sums) == [EXPERTS]
    assert list(importance.select().sums) == [ATTENTION, EXPERTS]


def dat(name: bytes = b"blk.0.attn_q.weight", values: tuple[float, ...] = (1.0, 2.0)) -> bytes:
    return struct.pack("<ii", 1, len(name)) + name + struct.pack(f"<ii{len(values)}f", 1, len(values), *values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the number of entries at byte 0 takes 4 bytes, but only 0 are left"),
        (struct.pack("<i", 0), "holds no importance"),
        (struct.pack("<i", -1), "holds no importance"),
        (b"PK\x03\x04" + bytes(100), "the name of entry 0 has 0 bytes"),
        (dat()[:-1], "the importance of blk.0.attn_q.weight at byte 35 takes 8 bytes, but only 7 are left"),
        (dat(name=b""), "the name of entry 0 has 0 bytes"),
        (dat(values=()), "has no columns"),
        (dat(values=(1.0, -1.0)), "blk.0.attn_q.weight: importance is negative"),
        (dat(values=(1.0, float("nan"))), "blk.0.attn_q.weight: importance is negative, infinite or NaN"),
        (dat()[:4] + struct.pack("<i", -5), "takes -5 bytes"),
    ],
)
def test_damaged_dat_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_importance(tmp_path / "imatrix.dat")


def test_notes_come_back(tmp_path: Path) -> None:
    notes = {"lltool.version": string("1.2"), "lltool.imatrix.windows": u32(7)}
    write_importance(tmp_path / "imatrix.gguf", replace(small_importance(), notes=notes))
    assert read_importance(tmp_path / "imatrix.gguf").notes == notes


def test_merged_importance_is_that_of_all_tokens(tmp_path: Path) -> None:
    one, other = small_importance(), small_importance().select(["attn"])
    merged = merge([one, other], 2)
    np.testing.assert_array_equal(merged.sums[ATTENTION], [[4, 8, 12]])
    np.testing.assert_array_equal(merged.sums[EXPERTS], one.sums[EXPERTS])
    np.testing.assert_array_equal(merged.counts[ATTENTION], [4])
    assert merged.datasets == ("first.txt", "second.txt") * 2
    assert (merged.chunk_count, merged.chunk_size) == (2, 2)

    write_dat(tmp_path / "imatrix.dat", one)  # stores one mean per column, over one chunk of two tokens
    merged = merge([read_importance(tmp_path / "imatrix.dat"), one], 2)
    np.testing.assert_array_equal(merged.sums[ATTENTION], [[4, 8, 12]])
    np.testing.assert_array_equal(merged.sums[EXPERTS], [[7, 14], [4, 4], [5, 5]])
    np.testing.assert_array_equal(merged.counts[EXPERTS], [7, 4, 5])

    narrow = replace(other, sums={ATTENTION: np.ones((1, 2), np.float32)})
    with pytest.raises(
        InputError, match=r"blk\.0\.attn_q\.weight: importance of 2 columns cannot be added to that of 3"
    ):
        merge([one, narrow], 2)
