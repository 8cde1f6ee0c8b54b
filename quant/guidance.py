"""Importance as quantization uses it: checked against the model, with one mean square per column and expert."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, string, u32
from lltool.gguf.source import Tensor
from lltool.quant.choose import EMBEDDINGS, OUTPUT, PLAIN, ChosenType
from lltool.quant.importance import Importance, read_importance

Floats = NDArray[np.float32]

# The keys in which `lltool imatrix` records how it made a file; they are copied into a quantized model.
_ORIGIN = tuple(f"lltool.imatrix.{key}" for key in ("model", "model_sha256", "text", "text_sha256"))


@dataclass(frozen=True)
class Guidance:
    """An importance file, or the entries of it that the user selected."""

    path: Path
    importance: Importance

    def of(self, tensor: Tensor, name: str) -> Floats | None:
        """The importance of the columns of `tensor`, (experts, columns), or None; `name` is its name in the file."""
        if name not in self.importance.sums:
            return None
        means = self.importance.means(name)
        if means.size != _experts(tensor) * tensor.columns:
            return None  # only for embeddings and the output: `check` refuses other tensors
        return means.reshape(-1, tensor.columns)

    def metadata(self) -> dict[str, Value]:
        """The metadata that record the importance used, under llama-quantize's keys and our own."""
        importance = self.importance
        keys = {"quantize.imatrix.file": string(str(self.path))}
        if importance.datasets:
            keys["quantize.imatrix.dataset"] = string(importance.datasets[0])
        keys["quantize.imatrix.entries_count"] = u32(len(importance.sums))
        if importance.chunk_count > 0:
            keys["quantize.imatrix.chunks_count"] = u32(importance.chunk_count)
        keys["lltool.quantize.imatrix_sha256"] = string(sha256_of([self.path]))
        return keys | {key: importance.notes[key] for key in _ORIGIN if key in importance.notes}

    def check(self, choices: Sequence[ChosenType], names: Mapping[str, str], known: Collection[str]) -> list[str]:
        """Notes for the user about missing importance. Raises InputError if the importance belongs to another model.

        `names` gives the original name of each tensor; `known` are all original names, also of pruned tensors.
        """
        if unknown := sorted(self.importance.sums.keys() - set(known)):
            raise InputError(
                f"{self.path}: has importance of {_listed(unknown)}, which the model does not have; "
                f"it belongs to another model (--exclude-weights leaves entries out)"
            )
        missing, unseen, zero = [], [], []
        for choice in choices:
            tensor, name = choice.tensor, names[choice.tensor.name]
            if choice.type == tensor.type or choice.type in PLAIN:
                continue
            is_lookup = tensor.name == OUTPUT or tensor.name in EMBEDDINGS
            if name not in self.importance.sums:
                if choice.needs_importance:
                    raise InputError(
                        f"{self.path}: has no importance of {name}, and {choice.type.name} is of no use without it"
                    )
                if not is_lookup:  # llama-imatrix collects nothing for the embeddings and the output
                    missing.append(name)
                continue
            found, wanted = self.importance.sums[name].size, _experts(tensor) * tensor.columns
            if found != wanted and not is_lookup:
                raise InputError(
                    f"{self.path}: {name} has {found} columns, the model's has {wanted}; it belongs to another model"
                )
            counts = self.importance.counts[name]
            unseen += [f"{name}, expert {index}" if len(counts) > 1 else name for index in np.flatnonzero(counts == 0)]
            if counts.any() and not self.importance.sums[name].any():
                zero.append(name)
        return [
            f"{self.path.name}: {what}: {_listed(which)}"
            for what, which in (
                ("has nothing for these tensors, so all their columns count the same", missing),
                ("these saw no token, so all their columns count the same", unseen),
                ("is all zero for these tensors", zero),
            )
            if which
        ]


def read_guidance(path: str | Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Guidance:
    """Reads an importance file and selects entries by parts of their names.

    Raises InputError for a damaged file and if no entry is left.
    """
    path = Path(path)
    selected = read_importance(path).select(include, exclude)
    if not selected.sums:
        raise InputError(f"{path}: no entry is left by --include-weights and --exclude-weights")
    return Guidance(path, selected)


def _experts(tensor: Tensor) -> int:
    return tensor.shape[-3] if len(tensor.shape) > 2 else 1


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
