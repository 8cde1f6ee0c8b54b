"""Edits of metadata: values against PyPI's gguf, all other bytes unchanged, a file that is whole at every moment."""

import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gguf
from lltool.gguf import edit, room
from lltool.gguf.describe import plain_value
from lltool.gguf.edit import Edited, edit_gguf
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.header import parse_header
from lltool.gguf.metadata import Value, ValueType, array, boolean, f32, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import encode_key, write_gguf

METADATA = {
    "general.architecture": string("llama"),
    "general.name": string("Tiny"),
    "tokenizer.ggml.tokens": array(ValueType.STRING, [f"token{i}" for i in range(9000)]),
    "tokenizer.ggml.eos_token_id": u32(2),
    "tokenizer.chat_template": string("{{ messages }}" * 100),
    "llama.rope.freq_base": f32(10000.0),
}


def make(path: Path, *, has_room: bool = True, alignment: int = 32, **more: Any) -> list[Path]:
    rows = np.random.default_rng(0).integers(0, 256, (6, 96), np.uint8)
    tensors = [Tensor(f"t{i}", GGMLType.F32, (6, 24), lambda start, stop: rows[start:stop]) for i in range(4)]
    return write_gguf(path, Model(METADATA, tensors), has_room=has_room, alignment=alignment, **more)


def change(path: Path, changes: dict[str, Value | None], **more: Any) -> Edited:
    return edit_gguf(path, lambda metadata: changes, **more)


def as_others_read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metadata, without the room, and tensors, as PyPI's gguf reads them."""
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(("GGUF.", "lltool."))}
    return values, {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}


def plain(metadata: dict[str, Value | None]) -> dict[str, Any]:
    return {key: plain_value(value) for key, value in metadata.items() if value is not None}


def data_of(path: Path) -> bytes:
    """All bytes from the first tensor on."""
    raw = path.read_bytes()
    return raw[parse_header(path, memoryview(raw)).data_start :]


@pytest.mark.parametrize("alignment", [8, 32, 4096])
@pytest.mark.parametrize("has_room", [True, False])
def test_other_programs_read_what_was_set(tmp_path: Path, has_room: bool, alignment: int) -> None:
    path = make(tmp_path / "m.gguf", has_room=has_room, alignment=alignment)[0]
    _, tensors = as_others_read(path)
    changes: dict[str, Value | None] = {
        "general.name": string("A longer name, with Ümläuts"),
        "llama.rope.freq_base": None,
        "general.tags": array(ValueType.STRING, ["a", "b"]),
        "general.flag": boolean(True),
    }
    size = path.stat().st_size
    done = change(path, changes)
    assert done.in_place == has_room
    assert (path.stat().st_size == size) == has_room
    expected = plain({**METADATA, **({"general.alignment": u32(alignment)} if alignment != 32 else {}), **changes})
    assert as_others_read(path) == (expected, tensors)
    assert done.before == {key: METADATA.get(key) for key in changes}
    with open_gguf(path) as file:
        assert plain(dict(file.metadata)) == expected


numbers = {
    ValueType.INT8: (-(2**7), 2**7 - 1),
    ValueType.UINT32: (0, 2**32 - 1),
    ValueType.INT64: (-(2**63), 2**63 - 1),
}
values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3000).map(string),
    st.booleans().map(boolean),
    *(st.integers(*bounds).map(lambda number, type=type: Value(type, number)) for type, bounds in numbers.items()),
    st.lists(st.integers(0, 255), max_size=2000).map(lambda items: array(ValueType.UINT8, items)),
    st.lists(st.text("aé ", max_size=9), max_size=50).map(lambda items: array(ValueType.STRING, items)),
    st.none(),
)
edits = st.dictionaries(st.sampled_from([*METADATA, "general.new", "x"]), values, max_size=4)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(edits, min_size=1, max_size=4))
def test_what_is_set_is_read_and_all_else_stays(tmp_path: Path, steps: list[dict[str, Value | None]]) -> None:
    path = make(tmp_path / "m.gguf")[0]
    expected, before = plain(METADATA), data_of(path)
    for step in steps:
        step = {key: value for key, value in step.items() if value is not None or key in expected}
        size, inode = path.stat().st_size, path.stat().st_ino
        done = change(path, step)
        expected = {key: value for key, value in {**expected, **plain(step)}.items() if step.get(key, 0) is not None}
        with open_gguf(path) as file:
            assert plain(dict(file.metadata)) == expected
        assert data_of(path) == before
        if done.in_place:
            assert (path.stat().st_size, path.stat().st_ino) == (size, inode)
    assert as_others_read(path)[0] == expected


def test_every_moment_of_an_edit_in_place_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of the file after every byte of the first write, and after each write."""
    path = make(tmp_path / "m.gguf")[0]
    planned: list[list[tuple[int, bytes]]] = []
    for template in ("{{ a }}" * 700, "{{ b }}", "{{ c }}" * 500, "{{ d }}" * 400):
        image = bytearray(path.read_bytes())
        old = plain(dict(parse_header(path, memoryview(bytes(image))).metadata))
        with monkeypatch.context() as patch:
            patch.setattr(edit, "write_in_order", lambda path, writes: planned.append(writes))
            assert change(path, {"tokenizer.chat_template": string(template), "general.name": None}).in_place
        (at, copy), (commit_at, commit) = planned.pop()
        assert commit_at + len(commit) <= 64  # within one page, and one sector of a disk
        for count in [*range(0, len(copy), 97), len(copy)]:
            image[at : at + count] = copy[:count]
            assert plain(dict(parse_header(path, memoryview(bytes(image))).metadata)) == old
        image[commit_at : commit_at + len(commit)] = commit
        new = parse_header(path, memoryview(bytes(image)))
        assert new.metadata["tokenizer.chat_template"] == string(template)
        assert plain(dict(new.metadata)) == {**{k: v for k, v in old.items() if k != "general.name"},
                                             "tokenizer.chat_template": template}  # fmt: skip
        path.write_bytes(image)
        change(path, {"general.name": string("back")})


@pytest.mark.parametrize("is_first", [True, False])
def test_a_new_copy_of_any_size_spares_the_valid_one(tmp_path: Path, is_first: bool) -> None:
    path = make(tmp_path / "m.gguf")[0]
    if not is_first:
        assert change(path, {"tokenizer.chat_template": string("short")}).in_place
    data = memoryview(path.read_bytes())
    header = parse_header(path, data)
    keys = room.keys_in(header, data)
    (_, start), (tail, end) = (header.places[name] for name in ("lltool.room.head", "lltool.room.tail"))
    fitted = []
    for size in range(26_000):
        keys["tokenizer.chat_template"] = encode_key(path, "tokenizer.chat_template", string("x" * size))
        writes = room.plan_writes(header, data, keys)
        if writes is not None and len(writes) == 2:
            at, copy = writes[0]
            assert at >= 64
            assert at + len(copy) <= start or tail + 40 <= at  # 40 bytes are the name, types and length of the tail
            assert at + len(copy) <= end
            fitted.append(size)
    assert fitted[-1] > room.ROOM
    assert fitted == [size for size in range(fitted[-1] + 1) if size != (5 if not is_first else 1400)]


@pytest.mark.parametrize("has_room", [True, False])
def test_a_number_is_changed_by_one_write(tmp_path: Path, has_room: bool) -> None:
    path = make(tmp_path / "m.gguf", has_room=has_room)[0]
    before = path.read_bytes()
    assert change(path, {"tokenizer.ggml.eos_token_id": u32(7)}).bytes == 1
    after = path.read_bytes()
    assert [(i, b) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [
        (before.index(b"eos_token_id") + 16, 7)
    ]


def test_changes_on_two_pages_are_not_made_by_two_writes(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", has_room=False)[0]  # the vocabulary lies between the two
    assert not change(path, {"general.name": string("Tina"), "tokenizer.ggml.eos_token_id": u32(7)}).in_place
    assert change(path, {"general.name": string("Tiny"), "tokenizer.ggml.eos_token_id": u32(2)}).in_place


KILLED = """
import sys
from pathlib import Path
from lltool.gguf.edit import edit_gguf
from lltool.gguf.metadata import string
print(flush=True)
for number in range(10**9):
    template = string(chr(97 + number % 26) * (9000 + number % 999))
    edit_gguf(Path(sys.argv[1]), lambda _: {"tokenizer.chat_template": template})
"""


@pytest.mark.slow
def test_a_killed_edit_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf")[0]
    _, tensors = as_others_read(path)
    templates = set()
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(np.random.default_rng(number).uniform(0.01, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found, data = as_others_read(path)
        template = found["tokenizer.chat_template"]
        assert data == tensors
        assert len(set(template)) == 1 or number == 0
        assert {k: v for k, v in found.items() if k != "tokenizer.chat_template"} == {
            key: value for key, value in plain(METADATA).items() if key != "tokenizer.chat_template"
        }
        templates.add(template)
    assert len(templates) > 3
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_process_that_has_the_file_mapped_keeps_its_tensors(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf")[0]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        start = parse_header(path, memoryview(path.read_bytes())).data_start
        before = mapped[start:]
        assert change(path, {"general.name": string("x" * 500)}).in_place
        assert mapped[start:] == before
        assert not change(path, {"general.name": string("x" * 50_000)}).in_place
        assert mapped[start:] == before


def test_a_split_model_is_changed_in_its_first_shard(tmp_path: Path) -> None:
    paths = make(tmp_path / "m.gguf", shard_tensors=1)
    others = [path.read_bytes() for path in paths[1:]]
    for name in ("in place", "n" * 40_000):
        done = change(paths[2], {"general.name": string(name)})
        assert (done.path, done.in_place) == (paths[0], len(name) < 100)
        with open_gguf(paths[1]) as file:
            assert file.metadata["general.name"] == string(name)
            assert len(file.tensors) == 4
    assert [path.read_bytes() for path in paths[1:]] == others
    change(paths[0], {"general.name": string("copy")}, output=tmp_path / "n.gguf")
    with open_gguf(tmp_path / "n-00003-of-00004.gguf") as file:
        assert file.metadata["general.name"] == string("copy")
    with open_gguf(paths[0]) as file:
        assert file.metadata["general.name"] == string("n" * 40_000)


def test_a_new_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf")[0]
    before = path.read_bytes()
    for dry_run in (True, False):
        change(path, {"general.name": string("copy")}, output=tmp_path / "n.gguf", dry_run=dry_run)
        assert (tmp_path / "n.gguf").exists() != dry_run
    change(path, {"general.name": string("copy")}, dry_run=True)
    assert path.read_bytes() == before
    assert as_others_read(tmp_path / "n.gguf") == (
        plain({**METADATA, "general.name": string("copy")}),
        as_others_read(path)[1],
    )


def test_what_cannot_be_edited_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "m.gguf")[0]
    before = path.read_bytes()
    for key in ("general.alignment", "split.count", "lltool.room.head"):
        with pytest.raises(InputError, match=f"key '{key}' cannot be set or removed"):
            change(path, {key: u32(64)})
    with pytest.raises(InputError, match=r"has no key 'general\.nam'; did you mean 'general\.name'"):
        edit_gguf(path, lambda metadata: dict([edit.removal(path, metadata, "general.nam")]))
    with pytest.raises(InputError, match="value does not fit"):
        change(path, {"tokenizer.ggml.eos_token_id": u32(-1)})
    with pytest.raises(InputError, match="would overwrite its own source"):
        change(path, {"general.name": string("x")}, output=path)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is editing it"):
            change(path, {"general.name": string("x")})
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(InputError, match="is protected from writing; allow it, or write to -o FILE"):
            change(path, {"general.name": string("x")})
    assert path.read_bytes() == before
    cached = tmp_path / "models--org--name" / "blobs"
    cached.mkdir(parents=True)
    (tmp_path / "link.gguf").symlink_to(path.rename(cached / "0123"))
    with pytest.raises(InputError, match="is in the Hub's cache"):
        change(tmp_path / "link.gguf", {"general.name": string("x")})


def test_other_hard_links_keep_the_old_file(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf")[0]
    os.link(path, tmp_path / "n.gguf")
    before = path.read_bytes()
    assert not change(path, {"tokenizer.ggml.eos_token_id": u32(7)}).in_place
    assert (tmp_path / "n.gguf").read_bytes() == before
    assert change(path, {"tokenizer.ggml.eos_token_id": u32(8)}).in_place


def test_room_is_left_again_by_the_new_file(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", has_room=False)[0]
    assert not change(path, {"general.name": string("n" * 300)}).in_place
    assert change(path, {"general.name": string("n" * 3000)}).in_place
    assert change(path, {"tokenizer.chat_template": string("n" * (room.ROOM - 6000))}).in_place
