"""The writer: bytes against PyPI's gguf in both directions, real files, shards, and cleanup after errors."""

import errno
import filecmp
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.gguf.describe import plain_value
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.metadata import Value, ValueType, array, f32, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Bytes, Model, Tensor
from lltool.gguf.writer import Output, write_gguf, write_together
from tests.conftest import GoldenFile

EXTREMES = {
    ValueType.UINT8: [0, 255],
    ValueType.INT8: [-128, 127],
    ValueType.UINT16: [0, 65535],
    ValueType.INT16: [-32768, 32767],
    ValueType.UINT32: [0, 2**32 - 1],
    ValueType.INT32: [-(2**31), 2**31 - 1],
    ValueType.FLOAT32: [1.5, -0.0],
    ValueType.BOOL: [True, False],
    ValueType.STRING: ["", "héllo\n▁"],
    ValueType.UINT64: [0, 2**64 - 1],
    ValueType.INT64: [-(2**63), 2**63 - 1],
    ValueType.FLOAT64: [0.1, -1e300],
}
METADATA = {
    "general.architecture": string("test"),
    **{f"scalar.{t.name}.{i}": Value(t, v[i]) for t, v in EXTREMES.items() for i in range(2)},
    **{f"array.{t.name}": array(t, v) for t, v in EXTREMES.items()},
}


def make_tensor(name: str, shape: tuple[int, ...], type: GGMLType = GGMLType.F32, seed: int = 0) -> Tensor:
    """A tensor of random bytes, which are valid for every type except the floats."""
    tensor = Tensor(name, type, shape, lambda start, stop: data[start:stop])
    data = np.random.default_rng(seed).integers(0, 256, (tensor.rows, tensor.row_bytes), np.uint8)
    return tensor


def same_metadata(found, wanted) -> None:
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert (found[key].type, found[key].item) == (value.type, value.item), key
        if value.type == ValueType.ARRAY:
            assert plain_value(found[key]) == plain_value(value), key
        else:
            assert found[key].data == value.data, key


def same_tensors(found, wanted) -> None:
    assert [(t.name, t.type, t.shape) for t in found] == [(t.name, t.type, t.shape) for t in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours.data(), theirs.data(), ours.name)


def test_round_trip_of_every_type(tmp_path: Path) -> None:
    tensors = [make_tensor(t.name, (2, 3, 256), t, t) for t in LAYOUT] + [make_tensor("scalar", ())]
    assert write_gguf(tmp_path / "m.gguf", Model(METADATA, tensors)) == [tmp_path / "m.gguf"]
    with open_gguf(tmp_path / "m.gguf") as file:
        same_metadata(file.metadata, METADATA)
        same_tensors(file.tensors, tensors)


def test_gguf_package_reads_ours(tmp_path: Path) -> None:
    pytest.importorskip("gguf.quants")
    import gguf

    # PyPI's gguf counts 40 bytes per block of Q8_1, ggml 36; no file contains the type.
    known = [t for t in LAYOUT if t in set(gguf.GGMLQuantizationType) and t != GGMLType.Q8_1]
    tensors = [make_tensor(t.name, (3, 256), t, t) for t in known]
    write_gguf(tmp_path / "m.gguf", Model(METADATA, tensors))
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, value in METADATA.items():
        field = theirs.fields[key]
        assert field.types[0] == value.type
        assert field.contents() == value.data, key
    assert len(theirs.tensors) == len(tensors)
    for found, wanted in zip(theirs.tensors, tensors, strict=True):
        assert (found.name, found.tensor_type, list(found.shape)) == (wanted.name, wanted.type, [256, 3])
        assert found.data.tobytes() == wanted.data().tobytes(), wanted.name


@pytest.mark.parametrize("alignment", [32, 64])
def test_bytes_equal_the_gguf_packages(tmp_path: Path, alignment: int) -> None:
    pytest.importorskip("gguf.quants")
    import gguf

    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "test")
    if alignment != 32:
        theirs.add_custom_alignment(alignment)
    for type, values in EXTREMES.items():
        if type != ValueType.STRING:  # PyPI's gguf drops the empty string
            theirs.add_key_value(f"scalar.{type.name}", values[0], gguf.GGUFValueType(type))
        theirs.add_key_value(f"array.{type.name}", values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(type))
    tensors = [make_tensor(t.name, (3, 256), t, t) for t in (GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.I8)]
    tensors.append(make_tensor("odd", (5,), GGMLType.F16))
    for tensor in tensors:
        data = tensor.data() if len(tensor.shape) == 2 else tensor.data()[0]
        theirs.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType(tensor.type))
    for step in (theirs.write_header_to_file, theirs.write_kv_data_to_file, theirs.write_tensors_to_file, theirs.close):
        step()

    with open_gguf(tmp_path / "theirs.gguf") as file:
        assert file.alignment == alignment
        same_tensors(file.tensors, tensors)
        for type, values in EXTREMES.items():
            assert list(file.metadata[f"array.{type.name}"].data) == values
        write_gguf(tmp_path / "ours.gguf", Model(file.metadata, tensors))
    assert filecmp.cmp(tmp_path / "ours.gguf", tmp_path / "theirs.gguf", shallow=False)


@pytest.mark.parametrize("name", ["smollm2-q4_1", "gemma3-270m-q4_k_m", "qwen25coder-0.5b-q4_k_m"])
def test_real_files_come_out_byte_for_byte(tmp_path: Path, real_model: Callable[[str], Path], name: str) -> None:
    with open_gguf(real_model(name)) as file:
        write_gguf(tmp_path / "again.gguf", file)
    assert filecmp.cmp(real_model(name), tmp_path / "again.gguf", shallow=False)


def test_golden_files_come_out_byte_for_byte(tmp_path: Path, golden_file: GoldenFile) -> None:
    paths = sorted(golden_file("vocab/ggml-vocab-llama-bpe.gguf").parent.parent.glob("*/*.gguf"))
    assert paths
    for path in paths:
        with open_gguf(path) as file:
            write_gguf(tmp_path / "again.gguf", file)
        assert filecmp.cmp(path, tmp_path / "again.gguf", shallow=False), path


def values(type: ValueType) -> st.SearchStrategy:
    match type:
        case ValueType.BOOL:
            return st.booleans()
        case ValueType.STRING:
            return st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
        case ValueType.FLOAT32 | ValueType.FLOAT64:
            return st.floats(allow_nan=False, width=32 if type == ValueType.FLOAT32 else 64)
    low, high = EXTREMES[type]
    return st.integers(low, high)


items = st.sampled_from(sorted(EXTREMES))
scalars = items.flatmap(lambda t: values(t).map(lambda v: Value(t, v)))
arrays = items.flatmap(lambda t: st.lists(values(t), max_size=8).map(lambda v: array(t, v)))
arrays |= st.lists(arrays, max_size=3).map(lambda rows: array(ValueType.ARRAY, tuple(rows)))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: not name.startswith(("split.", "general.alignment"))
)


@given(metadata=st.dictionaries(names, scalars | arrays, max_size=8))
@settings(max_examples=100, deadline=None)
def test_metadata_round_trip(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Value]) -> None:
    path = tmp_path_factory.getbasetemp() / "metadata.gguf"
    write_gguf(path, Model(metadata, []))
    same_metadata(open_gguf(path).metadata, metadata)


def test_windows_are_bounded_and_in_order(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []
    whole = make_tensor("w", (100, 64))

    def read(start: int, stop: int) -> Bytes:
        asked.append((start, stop))
        assert threading.current_thread() is not threading.main_thread()
        return whole.read(start, stop)

    seen: list[tuple[int, int]] = []
    model = Model({}, [Tensor("w", whole.type, whole.shape, read), make_tensor("v", (1, 7))])
    write_together(
        [Output(tmp_path / "m.gguf", model)],
        window_weights=200,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert asked == [(start, min(start + 3, 100)) for start in range(0, 100, 3)]
    assert seen[0] == (768, 25628)
    assert seen[-1] == (25628, 25628)
    same_tensors(open_gguf(tmp_path / "m.gguf").tensors, [whole, model.tensors[1]])


@pytest.mark.parametrize(
    ("limits", "shapes"),
    [
        ({"shard_tensors": 2}, [["t0", "t1"], ["t2", "t3"], ["t4"]]),
        ({"shard_bytes": 256}, [["t0", "t1"], ["t2"], ["t3", "t4"]]),  # t2 alone is larger than the limit
        ({"shard_bytes": 128, "shard_tensors": 2}, [["t0"], ["t1"], ["t2"], ["t3"], ["t4"]]),
    ],
)
def test_shards(tmp_path: Path, limits: dict[str, int], shapes: list[list[str]]) -> None:
    tensors = [make_tensor(f"t{i}", (1, 96 if i == 2 else 32), seed=i) for i in range(5)]
    metadata = {"general.architecture": string("test"), "split.count": Value(ValueType.UINT16, 9), "x": u32(7)}
    paths = write_gguf(tmp_path / "m.gguf", Model(metadata, tensors), **limits)
    count = len(shapes)
    assert [path.name for path in paths] == [f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert sorted(tmp_path.iterdir()) == paths
    for path in paths:
        with open_gguf(path) as file:
            assert file.paths == tuple(paths)
            assert list(file.metadata) == ["general.architecture", "x"]
            same_tensors(file.tensors, tensors)

    gguf = pytest.importorskip("gguf")
    for index, path in enumerate(paths):
        theirs = gguf.GGUFReader(path)
        assert [t.name for t in theirs.tensors] == shapes[index]
        assert ("x" in theirs.fields) == (index == 0)
        split = {key: field for key, field in theirs.fields.items() if key.startswith("split.")}
        assert {key: field.contents() for key, field in split.items()} == {
            "split.no": index,
            "split.count": count,
            "split.tensors.count": 5,
        }
        assert [field.types[0].name for field in split.values()] == ["UINT16", "UINT16", "INT32"]


def test_limits_that_everything_fits_in_give_one_plain_file(tmp_path: Path) -> None:
    model = Model({}, [make_tensor("w", (4,))])
    assert write_gguf(tmp_path / "m.gguf", model, shard_bytes=1 << 20) == [tmp_path / "m.gguf"]
    assert "split.count" not in open_gguf(tmp_path / "m.gguf").metadata


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    model = Model({"x": u32(1)}, [make_tensor(f"t{i}", (8,), seed=i) for i in range(3)])
    return write_gguf(tmp_path / "m.gguf", model, shard_tensors=1)


def test_missing_shard(split: list[Path]) -> None:
    split[1].unlink()
    with pytest.raises(InputError, match=r"1 of 3 shards are missing beside it: m-00002-of-00003\.gguf"):
        open_gguf(split[2])


def test_shard_under_another_name(split: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not named like one; rename them all as in renamed-00001-of-00003\.gguf"):
        open_gguf(split[0].rename(tmp_path / "renamed.gguf"))


def test_shards_in_the_wrong_order(split: list[Path]) -> None:
    shutil.copy(split[2], split[1])
    with pytest.raises(
        InputError, match=r"m-00002-of-00003\.gguf: split\.no and split\.count are 2 and 3, wanted 1 and 3"
    ):
        open_gguf(split[0])


def test_shards_of_different_models(split: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    others = [make_tensor(name, (8,)) for name in ("t0", "t0b", "t1")]
    other = write_gguf(tmp_path / "other" / "m.gguf", Model({}, others), shard_tensors=1)
    shutil.copy(other[2], split[2])
    with pytest.raises(InputError, match=r"m-00003-of-00003\.gguf: tensor 't1' is also in m-00002-of-00003\.gguf"):
        open_gguf(split[0])
    more = write_gguf(tmp_path / "other" / "m.gguf", Model({}, [*others, make_tensor("u", (8,))]), shard_tensors=2)
    more[0].rename(tmp_path / "two-00001-of-00002.gguf")
    two = write_gguf(tmp_path / "other" / "m.gguf", Model({}, others), shard_tensors=2)
    two[1].rename(tmp_path / "two-00002-of-00002.gguf")
    with pytest.raises(InputError, match=r"have 3 tensors together, but split\.tensors\.count is 4"):
        open_gguf(tmp_path / "two-00001-of-00002.gguf")


def test_split_keys_of_the_wrong_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lltool.gguf.shards.SPLIT_KEYS", frozenset())
    write_gguf(tmp_path / "m.gguf", Model({"split.count": string("many")}, []))
    with pytest.raises(InputError, match=r"split\.count is 'many' \(STRING\), wanted a small integer"):
        open_gguf(tmp_path / "m.gguf")


W = make_tensor("w", (32,))
REFUSED = {
    "value out of range": (Model({"k": u32(-1)}, []), {}, "key 'k' of type UINT32: value does not fit"),
    "array item out of range": (Model({"k": array(ValueType.INT8, [1, 200])}, []), {}, "key 'k' of type ARRAY"),
    "float too large": (Model({"k": f32(1e39)}, []), {}, "key 'k' of type FLOAT32"),
    "text for a number": (Model({"k": u32("7")}, []), {}, "key 'k' of type UINT32"),
    "lone surrogate": (Model({"k": string("\ud800")}, []), {}, "key 'k' of type STRING"),
    "array without an item type": (Model({"k": Value(ValueType.ARRAY, [])}, []), {}, "key 'k' of type ARRAY"),
    "alignment": (Model({}, []), {"alignment": 48}, "alignment is 48, wanted a power of two"),
    "name twice": (Model({}, [W, W]), {}, "tensor 'w' appears twice"),
    "long name": (Model({}, [make_tensor("n" * 64, (4,))]), {}, "does not have 1 to 63 bytes"),
    "dimensions": (Model({}, [make_tensor("w", (1, 1, 1, 1, 4))]), {}, "wanted at most 4 dimensions"),
    "zero": (Model({}, [make_tensor("w", (0, 4))]), {}, "and none of 0"),
    "block": (Model({}, [Tensor("w", GGMLType.Q4_0, (40,), W.read)]), {}, "'w': row of 40 is not a multiple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    model, options, message = REFUSED[case]
    with pytest.raises(InputError, match=r"m\.gguf: ") as caught:
        write_gguf(tmp_path / "m.gguf", model, **options)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_write_replaces_other_files_but_not_its_source(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("something older")
    write_gguf(path, Model({}, [W]))
    before = path.read_bytes()
    with open_gguf(path) as file:
        with pytest.raises(InputError, match="would overwrite its own source"):
            write_gguf(path, file)
        (tmp_path / "link.gguf").symlink_to(path)
        with pytest.raises(InputError, match="would overwrite its own source"):
            write_gguf(tmp_path / "link.gguf", Model({}, file.tensors), inputs=file.paths)
    assert path.read_bytes() == before


def test_impossible_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, wanted the name of a file"):
        write_gguf(tmp_path, Model({}, [W]))
    with pytest.raises(InputError, match="no such folder"):
        write_gguf(tmp_path / "none" / "m.gguf", Model({}, [W]))


def test_a_disk_that_is_too_small_is_reported_before_any_work(tmp_path: Path) -> None:
    def never(start: int, stop: int) -> Bytes:
        raise AssertionError("read before the disk was checked")

    huge = Tensor("w", GGMLType.F32, (1 << 30, 1 << 30), never)
    with pytest.raises(InputError, match=r"needs 46116860184273[0-9]+ bytes, but the disk has \d+ free; free some"):
        write_gguf(tmp_path / "m.gguf", Model({}, [huge]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (InputError("w: not finite"), InputError),
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (OSError(errno.EIO, "Input/output error"), OSError),
    ],
)
@pytest.mark.parametrize("limits", [{}, {"shard_tensors": 1}])
def test_nothing_is_left_behind(
    tmp_path: Path, error: BaseException, seen: type[BaseException], limits: dict[str, int]
) -> None:
    def fail(start: int, stop: int) -> Bytes:
        assert list(tmp_path.glob(".lltool-*/m*.gguf"))
        raise error

    old = tmp_path / "m.gguf"
    old.write_text("the file of an earlier run")
    model = Model({}, [W, Tensor("bad", GGMLType.F32, (4,), fail)])
    with pytest.raises(seen):
        write_gguf(old, model, **limits)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "the file of an earlier run"


def test_interrupt_while_writing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "m.gguf", Model({}, [W, make_tensor("v", (4,))]), progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The tensor's bytes are written to /dev/full, which accepts none."""

    def fill(start: int, stop: int) -> Bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"m\.gguf: the disk is full after 128 of 352 bytes; free some space"):
        write_gguf(tmp_path / "m.gguf", Model({}, [W, Tensor("bad", GGMLType.F32, (32,), fill)]))
    assert not list(tmp_path.iterdir())
