"""Files with the state of a text, so that another process need not compute it again.

A file has, all numbers little-endian: the 8 bytes LLTSTATE; its version and the size of the header, uint32 each; the
header, a JSON object; the text's tokens, int32; the pages of its keys and values in order; its slots, first the one
after all tokens, then those of its checkpoints; and the CRC-32 of all before it, uint32. The header says how many there
are of each and what they are good for: pages and slots are in the executor's own layout, so that a file fits only the
same model, computed in the same way.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.cache import Sequence
from lltool.engine.executor import SavingExecutor
from lltool.engine.model import Model
from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import open_regular
from lltool.gguf.whole_file import whole_file
from lltool.quant import isa

MAGIC = b"LLTSTATE"
VERSION = 1
_HEAD = struct.Struct("<8sII")
_MOST_HEADER = 1 << 20  # bytes
_SAMPLE = 4096  # bytes of a tensor's beginning and middle
_WHAT = {"model": "another model", "executor": "another executor or instruction set"}


@dataclass(frozen=True)
class _Header:
    """What a state is good for (`fits`), and how much there is of it; `checkpoints` is None for one without slots."""

    fits: dict[str, Any]
    tokens: int
    checkpoints: list[int] | None

    @property
    def pages(self) -> int:
        return -(-self.tokens // PAGE)

    @property
    def slots(self) -> int:
        return 0 if self.checkpoints is None else 1 + len(self.checkpoints)


def save_state(path: Path, model: Model, ids: List[int] | NDArray[np.int32], sequence: Sequence) -> int:
    """Writes the state of a text, whose tokens `ids` are all in `sequence`; returns the size of the file in bytes.

    Nothing may change the sequence meanwhile; other threads may use the model. The file appears whole or not at all.
    Raises InputError if it cannot be written.
    """
    executor = _executor(model)
    assert 0 < sequence.length == len(ids), "the tokens of another text"
    pages = sequence.pages[: -(-sequence.length // PAGE)]
    points = None if sequence.slot is None else [point.length for point in sequence.checkpoints]
    slots = [] if sequence.slot is None else [sequence.slot, *(point.slot for point in sequence.checkpoints)]
    header = json.dumps({"fits": _fits(model), "tokens": len(ids), "checkpoints": points}).encode()
    with whole_file(path) as temporary, temporary.open("wb") as file:
        check = 0

        def write(data: bytes) -> None:
            nonlocal check
            check = zlib.crc32(data, check)
            file.write(data)

        write(_HEAD.pack(MAGIC, VERSION, len(header)))
        write(header)
        write(np.asarray(ids, "<i4").tobytes())
        for page in pages:
            with model.turn():
                data = executor.read_page(page)
            write(data)
        for slot in slots:
            with model.turn():
                data = executor.read_slot(slot)
            write(data)
        file.write(struct.pack("<I", check))
        return file.tell()


class StateFile:
    """A file with a state that fits a model: `ids` are the tokens of its text. The file is closed by `close`.

    Raises InputError for a file that is none, is damaged or cut, or does not fit the model; OSError as `open` does.
    """

    def __init__(self, path: Path, model: Model) -> None:
        self.path, self.model = path, model
        self._executor = _executor(model)
        self._file: BinaryIO = open_regular(path)
        try:
            self._check = 0
            self._header = self._read_header()
            self.size = self._check_size()
            self.ids: NDArray[np.int32] = np.frombuffer(self._read(4 * self._header.tokens), "<i4").astype(np.int32)
            if self.ids.min() < 0 or self.ids.max() >= model.config.vocab:
                raise self._damaged("a token that the vocabulary does not have")
        except BaseException:
            self._file.close()
            raise

    def claim(self, sequence: Sequence) -> None:
        """Takes pages and slots for the state in an empty sequence. Raises InputError if there is no room."""
        sequence.restore(self._header.tokens, self._header.checkpoints)

    def fill(self, sequence: Sequence) -> None:
        """Reads the state into what the sequence has claimed. Raises InputError if the file is damaged."""
        for page in sequence.pages:
            data = self._read(self._executor.page_bytes)
            with self.model.turn():
                self._executor.write_page(page, data)
        for slot in sequence.slots():
            data = self._read(self._executor.slot_bytes)
            with self.model.turn():
                self._executor.write_slot(slot, data)
        check = self._check
        if struct.unpack("<I", self._read(4))[0] != check:
            raise self._damaged("its check sum is another one")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "StateFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise self._damaged("it is cut off")
        self._check = zlib.crc32(data, self._check)
        return data

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: a damaged file of a state: {what}; remove it or name another file")

    def _read_header(self) -> _Header:
        head = self._file.read(_HEAD.size)
        self._check = zlib.crc32(head)
        if len(head) < _HEAD.size or head[:8] != MAGIC:
            raise InputError(f"{self.path}: no file of a state, which begins with {MAGIC.decode()}; name another file")
        _, version, size = _HEAD.unpack(head)
        if version != VERSION:
            raise InputError(f"{self.path}: version {version} of the format, wanted {VERSION}; remove the file")
        if size > _MOST_HEADER:
            raise self._damaged(f"a header of {size} bytes")
        try:
            value = json.loads(self._read(size))
            header = _Header(dict(value["fits"]), value["tokens"], value["checkpoints"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._damaged("its header") from None
        self._check_fit(header)
        return header

    def _check_fit(self, header: _Header) -> None:
        for name, wanted in _fits(self.model).items():
            found = header.fits.get(name)
            if found != wanted:
                what = _WHAT.get(name) or f"{name} {str(found)[:40]}, and now it is {wanted}"
                raise InputError(f"{self.path}: the state was computed with {what}; remove it or name another file")
        counts = [header.tokens, *(header.checkpoints or [])] if isinstance(header.checkpoints, list | None) else [None]
        if not all(type(count) is int and count > 0 for count in counts):
            raise self._damaged("its counts")
        if header.tokens > self.model.context:
            raise InputError(
                f"{self.path}: a text of {header.tokens} tokens does not fit the context of {self.model.context}; "
                "load the model with a larger one (-c)"
            )
        points = header.checkpoints
        if (points is None) != (self._executor.slot_bytes == 0) or (
            points and (points != sorted(set(points)) or points[-1] > header.tokens)
        ):
            raise self._damaged("its checkpoints")

    def _check_size(self) -> int:
        header, executor = self._header, self._executor
        wanted = self._file.tell() + 4 * header.tokens + 4
        wanted += header.pages * executor.page_bytes + header.slots * executor.slot_bytes
        start = self._file.tell()
        found = self._file.seek(0, 2)
        self._file.seek(start)
        if found != wanted:
            raise self._damaged(f"{found} bytes, wanted {wanted}")
        return found


def _executor(model: Model) -> SavingExecutor:
    executor = model.executor
    if not isinstance(executor, SavingExecutor):
        raise InputError(f"{model.file.path}: runs on an executor that cannot save states")
    return executor


def _fits(model: Model) -> dict[str, Any]:
    """What must be equal for a state to mean the same."""
    setup, executor = model.setup, _executor(model)
    return {
        "model": _fingerprint(model),
        "precision": setup.precision,
        "cache-type-k": setup.cache_type_k,
        "cache-type-v": setup.cache_type_v,
        "deterministic": setup.deterministic,
        "executor": f"{type(executor).__name__} {setup.instruction_set or isa.chosen()} {executor.page_bytes}"
        f" {executor.slot_bytes}",
    }


def _fingerprint(model: Model) -> str:
    """A digest of the operations, and of samples of all weights: reading them whole would take as long as a prompt."""
    digest = hashlib.sha256(repr(model.program.ops).encode())
    for name, weight in model.program.weights.items():
        data = weight.data.reshape(-1).view(np.uint8)
        middle = len(data) // 2
        digest.update(f"{name} {weight.type} {weight.shape}".encode())
        digest.update(data[:_SAMPLE].tobytes() + data[middle : middle + _SAMPLE].tobytes())
    return digest.hexdigest()
