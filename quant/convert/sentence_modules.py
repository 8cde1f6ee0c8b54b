"""The modules of sentence-transformers in a checkpoint's folder: the pooling, and the matrices after it."""

from collections.abc import Iterator
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.source import Tensor
from lltool.quant.convert.checkpoint import read_json, read_json_list
from lltool.quant.convert.safetensors import open_safetensors

POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}
"""The numbers of poolings in a file, by sentence-transformers' names."""

_OLD_NAMES = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "lasttoken"}
_IDENTITY = ("torch.nn.modules.linear.Identity", None)


def read_pooling(folder: Path) -> str | None:
    """The pooling, a key of POOLINGS; None if the folder has no such modules. Raises InputError for another one."""
    for place in _modules(folder, "Pooling"):
        file = place / "config.json"
        settings = read_json(file)
        stated = settings.get("pooling_mode")
        modes = [stated] if isinstance(stated, str) else []
        for key, value in settings.items():
            if key.startswith("pooling_mode_") and value is True:
                name = key.removeprefix("pooling_mode_")
                modes.append(_OLD_NAMES.get(name, name))
        if len(set(modes)) != 1 or modes[0] not in POOLINGS:
            raise InputError(f"{file}: pooling {' and '.join(modes) or 'none'}, wanted one of {', '.join(POOLINGS)}")
        return modes[0]
    return None


def read_dense(folder: Path, most: int) -> list[Tensor]:
    """The matrices of dense layers, in order. Raises InputError for more than `most`, and for what is not a matrix."""
    places = list(_modules(folder, "Dense"))
    if len(places) > most:
        file = folder / "modules.json"
        raise InputError(f"{file}: {len(places)} dense layers after the pooling, but files of this model hold {most}")
    matrices = []
    for place in places:
        file = place / "config.json"
        settings = read_json(file)
        if settings.get("bias") or settings.get("activation_function") not in _IDENTITY:
            raise InputError(f"{file}: a dense layer with a bias or an activation, wanted a matrix alone")
        opened = open_safetensors(place / "model.safetensors")
        wanted = (settings.get("out_features"), settings.get("in_features"))
        names = list(opened.names)
        if names != ["linear.weight"] or opened.shape(names[0]) != wanted:
            raise InputError(f"{place / 'model.safetensors'}: wanted linear.weight alone, of shape {wanted}")
        matrices.append(opened.tensor(names[0]))
    return matrices


def _modules(folder: Path, kind: str) -> Iterator[Path]:
    """The folders of the modules of one kind."""
    for module in read_json_list(folder / "modules.json"):
        type, place = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(type, str) or not isinstance(place, str):
            raise InputError(f"{folder / 'modules.json'}: wanted modules with a type and a path")
        if type.rpartition(".")[2] == kind:
            if not (folder / place).resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{folder / 'modules.json'}: {place}: not inside the folder")
            yield folder / place
