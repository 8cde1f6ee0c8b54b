"""A reader for `pytorch_model*.bin` checkpoints, which uses torch's restricted unpickler so that no file runs code."""

import pickle
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as short
from typing import Any
from warnings import catch_warnings

from lltool.gguf.errors import InputError
from lltool.gguf.names import describe_os_error
from lltool.gguf.optional import require
from lltool.gguf.regular_file import open_regular
from lltool.gguf.source import Bytes, Tensor
from lltool.gguf.watched import WatchedFile
from lltool.quant.convert.raw import PLAIN_TYPES, RawTensor
from lltool.quant.convert.wrong_content import explain_content

# The exceptions, besides UnpicklingError, that torch.load raises for damaged or truncated files.
_DAMAGED = (AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError, struct.error)


# Keys under which training programs store a model's tensors.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class TorchFile:
    path: Path
    entries: Mapping[str, Any]  # name → torch.Tensor
    watched: WatchedFile

    def check_unchanged(self) -> None:
        """Raises FileChanged if the file was written to or truncated since it was opened."""
        self.watched.check_unchanged()

    @property
    def names(self) -> Collection[str]:
        return self.entries.keys()

    @property
    def aliases(self) -> Mapping[str, str]:
        """Always empty: a tensor with several names is in `entries` under each of them."""
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.entries[name].shape)

    def is_plain(self, name: str) -> bool:
        """Whether the tensor is a dense array of plain floats in memory."""
        import torch

        values = self.entries[name]
        return (
            _dtypes().get(values.dtype) in PLAIN_TYPES
            and values.layout == torch.strided
            and values.device.type == "cpu"
        )

    def is_same(self, name: str, other: str) -> bool:
        """Whether both names refer to the same stored tensor."""
        one, two = self.entries[name], self.entries[other]
        return self.is_plain(name) and self.is_plain(other) and bool(one.is_set_to(two))

    def raw(self, name: str) -> RawTensor:
        """The tensor of that name, as it is stored. Raises InputError for one that is not dense and in memory."""
        import torch

        values = self.entries[name]
        if values.layout != torch.strided or values.device.type != "cpu" or values.dtype not in _dtypes():
            found = f"{values.dtype}, {values.layout}, on {values.device.type}"
            raise InputError(f"{self.path}: {name}: type {found} is not supported; wanted a dense tensor in memory")
        shape = tuple(values.shape)
        table = values.detach().reshape(prod(shape[:-1]), shape[-1] if shape else 1)

        def read(start: int, stop: int) -> Bytes:
            self.watched.check_unchanged()
            rows: Bytes = table[start:stop].contiguous().view(torch.uint8).numpy()
            return rows

        return RawTensor(self.path, name, _dtypes()[values.dtype], shape, read)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name. Raises InputError for a type that is not a plain float."""
        if not self.is_plain(name):
            values = self.entries[name]
            wanted = "float32, float16, bfloat16 or float64 in memory"
            found = f"{values.dtype}, {values.layout}, on {values.device.type}"
            raise InputError(f"{self.path}: {name}: type {found} is not supported; wanted {wanted}")
        raw = self.raw(name)
        return Tensor(name, PLAIN_TYPES[raw.dtype], raw.shape, raw.read)


def _dtypes() -> dict[Any, str]:
    """safetensors' names of torch's types."""
    import torch

    return {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }


def open_torch(path: Path) -> TorchFile:
    """Maps a file written by torch.save; a file in the format before torch 1.6 is read into memory.

    Raises InputError without torch and for a file that is damaged or holds more than tensors.
    """
    require("torch", f"{path}: not safetensors")
    import torch

    try:
        with open_regular(path) as file:
            if reason := explain_content(file.read(64)):
                raise InputError(f"{path}: {reason}")
            file.seek(0)
            watched = WatchedFile(file)
            mappable = torch.serialization._is_zipfile(file)
        with catch_warnings(action="ignore"):  # torch warns about odd bytes before it fails on them
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: holds more than tensors, or is damaged: {reason}") from None
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: torch cannot read it: {reason}") from None
    tensors = _unwrap(loaded)
    for name, value in tensors.items() if isinstance(tensors, dict) else ():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {short(name)}: found {type(value).__name__}, wanted a tensor with a name")
    if not isinstance(tensors, dict) or not tensors:
        raise InputError(f"{path}: found {type(tensors).__name__} without tensors, wanted a dict of tensors by name")
    if mappable:
        kept = [tensor for tensor in tensors.values() if tensor.device.type == "cpu" and tensor.layout == torch.strided]
        storages = [tensor.untyped_storage() for tensor in kept]  # parts of one mapping
        start = min((s.data_ptr() for s in storages), default=0)
        stop = max((s.data_ptr() + s.nbytes() for s in storages), default=0)
        if start < stop:
            watched.guard(kept[0], start, stop - start)
    return TorchFile(path, tensors, watched)


def _unwrap(loaded: Any) -> Any:
    """The dict of tensors in a training program's file, which may also hold the optimizer's state."""
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            return _unwrap(loaded[key])
    return loaded
