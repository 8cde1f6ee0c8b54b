"""`pytorch_model*.bin` checkpoints, through torch's restricted unpickler: a file cannot run code."""

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from warnings import catch_warnings

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor

# What torch.load raises, besides UnpicklingError, for files with bytes that were changed or cut off.
_DAMAGED = (AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError, struct.error)


@dataclass(frozen=True)
class TorchFile:
    path: Path
    entries: Mapping[str, Any]  # name → torch.Tensor

    def tensor(self, name: str) -> Tensor:
        """Raises InputError for a type that is not a plain float."""
        import torch

        types = {torch.float32: GGMLType.F32, torch.float16: GGMLType.F16, torch.bfloat16: GGMLType.BF16}
        values = self.entries[name]
        if values.dtype not in types:
            wanted = "float32, float16, bfloat16"
            raise InputError(f"{self.path}: {name}: type {values.dtype} is not supported; wanted {wanted}")
        shape = tuple(values.shape)
        table = values.detach().reshape(prod(shape[:-1]), -1)

        def read(start: int, stop: int) -> Bytes:
            rows: Bytes = table[start:stop].contiguous().view(torch.uint8).numpy()
            return rows

        return Tensor(name, types[values.dtype], shape, read)


def open_torch(path: Path) -> TorchFile:
    """Maps a file of torch.save. One in the format of torch before 1.6 is read into memory whole."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading .bin needs torch; pip install 'lltool[torch]', or take safetensors"
        ) from None
    try:
        with path.open("rb") as file:
            mappable = torch.serialization._is_zipfile(file)
        with catch_warnings(action="ignore"):  # of odd bytes, before it fails on them
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: holds more than tensors, or is damaged: {reason}") from None
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: torch cannot read it: {reason}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: wanted a dict of tensors by name, found {type(loaded).__name__} of other things")
    return TorchFile(path, loaded)
