"""Conversion of one family of models between checkpoints and GGUF, by a table of tensors and a table of settings.

`to_gguf` converts a checkpoint's tensors to GGUF, `to_checkpoint` converts them back. Both are lazy: rows are
reordered, split, stacked or changed when the writer reads them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Tensor
from lltool.quant.codec import decode
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.keys import TIED, Keys, Setting
from lltool.quant.convert.families.names import count_layers, find_adapter, plain_name
from lltool.quant.convert.families.rows import Row, expand
from lltool.quant.convert.families.sizes import Sizes, spell_out
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.packed.parts import PlainFile
from lltool.quant.convert.wrong_content import MERGE_IT

_WINDOW = 16 << 20  # bytes of a tensor per comparison

IGNORED = ("rotary_emb.",)
"""Parts of the names of tensors that old checkpoints store although they follow from the config."""

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # from the config


Files = Mapping[str, PlainFile]


def _always(stored: Stored) -> bool:
    return True


@dataclass(frozen=True)
class LayerKey:
    """The name of a checkpoint's tensor with a layer's number, where `{}` stands for the layer, and its shape."""

    checkpoint: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """A family of models.

    `models` are classes of transformers and `model_types` those of their configs; `defaults` are the config class's,
    and `spelling` gives its names of keys that the tables name as Llama's config does, empty for a key that it lacks.
    `prefixes` of checkpoint names are replaced before the table is used, and `base` begins the names that a model
    without its output matrix leaves out; names that begin with one of `aliases` may repeat a tensor, and tensors whose
    names contain one of `ignored` are left out. So are layers that predict further tokens, as transformers leaves them
    out: their names begin with `predictors`, or `further` is a key that says how many there are after the last. `only`
    is a key that must be true in a config of this family, or a condition on the config; the family is before another of
    the same classes. `prepare` completes a config before anything is read from it. Of families with one architecture,
    export takes the first that `restores` a file. If there is no way back, `no_export` says why.
    """

    architecture: str
    models: tuple[str, ...]
    model_types: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: tuple[Setting, ...]
    defaults: Mapping[str, Any]
    spelling: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    base: str = "model."
    further: str = ""
    predictors: str = ""
    aliases: tuple[str, ...] = ()
    only: str | Callable[[Mapping[str, Any]], bool] = ""
    prepare: Callable[[Config], None] | None = None
    ignored: tuple[str, ...] = IGNORED
    restores: Callable[[Stored], bool] = _always
    no_export: str = ""
    layer_keys: Mapping[str, LayerKey] = field(default_factory=dict)

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether `only` holds in a config.json."""
        return self.only(config) if callable(self.only) else not self.only or config.get(self.only) is True

    def describe(self, config: Config) -> Keys:
        """GGUF keys, without the architecture's prefix. It completes the config with values that a file leaves out."""
        keys: Keys = {}
        for setting in (*self.settings, TIED):
            keys |= setting.describe(config)
        return keys

    def restore(self, stored: Stored) -> dict[str, Any]:
        """A config with the tables' names of keys; the inverse of `describe`.

        Raises InputError for keys that no config.json can express, and where there is no way back.
        """
        if self.no_export:
            raise InputError(f"{self.models[0]} cannot be exported: {self.no_export}")
        config: dict[str, Any] = {}
        for setting in self.settings:
            config |= setting.restore(stored, config)
        for key in self.layer_keys:
            config[f"_{key}"] = stored.numbers(key, config["num_hidden_layers"])
        config["tie_word_embeddings"] = HEAD not in stored.names
        return config | {"architectures": [self.models[0]], "model_type": self.model_types[0]}

    def spell(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config from `restore` as the model's own class reads it. Keys with an underscore are for the tables."""
        stated = {self.spelling.get(key, key): value for key, value in config.items() if not key.startswith("_")}
        return {key: value for key, value in stated.items() if key}

    def source_of(self, gguf: str) -> str:
        """The checkpoint's name, without a layer, of a GGUF tensor; empty if the family has no such tensor."""
        return next((row.checkpoint for row in self.rows if gguf in row.targets), "")

    def match(self, files: Files, config: Config) -> dict[str, str]:
        """The checkpoint's tensor names by the table's names. Raises InputError if they belong to another model."""
        if adapter := find_adapter(files):
            raise InputError(f"{files[adapter].path}: {adapter}: belongs to an adapter that is not merged; {MERGE_IT}")
        names: dict[str, str] = {}
        for name, file in files.items():
            plain = self.plain(name)
            repeats = any(each.startswith(self.aliases) for each in (name, names.get(plain, "")))
            if plain in names and repeats and _have_same_values(files[names[plain]], names[plain], file, name):
                continue
            if plain in names:
                raise InputError(f"{file.path}: {names[plain]} and {name} both stand for {plain}; remove one")
            if not any(part in name for part in self.ignored):
                names[plain] = name
        block = next(row.checkpoint for row in self.rows if row.is_of_layer)
        start, stated = block.partition("{}")[0], config.integer("num_hidden_layers")
        if self.further or self.predictors:
            self._drop_further(names, start, config)
        layers = count_layers(names, start)
        if not layers:
            some = ", ".join(short(name) for name in sorted(files)[:3]) or "none"
            raise InputError(
                f"{config.folder}: its tensors are named {some}, wanted {block.replace('{}', '0')} and so on; "
                f"are these weights of another model, or do the names have an unknown prefix?"
            )
        if layers != stated:
            raise InputError(
                f"{config.folder}: its tensors are of {layers} layers, but config.json says "
                f"{config.spell('num_hidden_layers')} {stated}; is one of the two from another model, or a shard "
                f"missing?"
            )
        return names

    def plain(self, name: str) -> str:
        """The table's name of a checkpoint's tensor."""
        inside, outside = self._beginnings
        return plain_name(name, self.prefixes, self.base, inside, outside)

    @cached_property
    def _beginnings(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """How names in the base model begin, without its own beginning, and names outside of it."""
        starts = {row.checkpoint.removeprefix(self.base).split(".")[0] + "." for row in self.rows}
        outside = {row.checkpoint.split(".")[0] + "." for row in self.rows if not row.checkpoint.startswith(self.base)}
        return tuple(starts - outside), tuple(outside)

    def _drop_further(self, names: dict[str, str], start: str, config: Config) -> None:
        """Takes out the tensors of layers that predict further tokens."""
        layers, further = config.integer("num_hidden_layers"), config.get(self.further, 0) if self.further else 0
        config.require(self.further, type(further) is int and 0 <= further < 1000, "an integer from 0, below 1000")
        starts = [f"{start}{layers + number}." for number in range(further)]
        starts += [self.predictors] if self.predictors else []
        dropped = [name for name in names if name.startswith(tuple(starts))]
        for name in dropped:
            del names[name]
        if dropped:
            config.notes.append(
                f"{len(dropped)} tensors of layers that predict further tokens are left out, as transformers does"
            )

    def to_gguf(self, names: Mapping[str, str], files: Files, config: Config) -> list[Tensor]:
        """The tensors in GGUF order. `names` come from `match`; `describe` must have completed the config.

        Raises InputError for a tensor that is missing, has a wrong shape or is not in the table.
        """
        left = self._share(dict(names), files, config)
        self._complete_vocab(left, files, config)
        sizes = Sizes(config.values)
        for key, number in self.layer_keys.items():
            config.layer_values[key] = [
                self._number(number.checkpoint.replace("{}", str(layer)), left, files, config)
                for layer in range(config.values["num_hidden_layers"])
            ]
        tensors: list[Tensor] = []
        made: set[str] = set()
        missing: dict[str, str] = {}  # sources by the GGUF tensors that wait for an alternative
        unwanted: dict[str, str] = {}
        for row in expand(self.rows, config.values):
            config.read.add(row.when.removeprefix("not "))
            sources = row.sources(sizes)
            if not row.is_wanted(config.values):
                unwanted |= dict.fromkeys(sources, row.when)
                continue
            absent = [source for source in sources if source not in left]
            if made.issuperset(row.targets) or (absent and row.optional):
                continue
            if absent:
                missing |= {target: missing.get(target, absent[0]) for target in row.targets if target not in made}
                continue
            found = [self._open(left.pop(source), row, files, config, sizes) for source in sources]
            results = row.change.to_gguf(found, sizes)
            tensors += [replace(tensor, name=name) for name, tensor in zip(row.targets, results, strict=True)]
            made.update(row.targets)
        self._refuse_missing({target: name for target, name in missing.items() if target not in made}, config)
        for plain in sorted(left.keys() & unwanted.keys())[:1]:
            key = unwanted[plain].removeprefix("not ")
            raise InputError(
                f"{files[left[plain]].path}: {left[plain]}: exists, but {config.spell(key)} in config.json is "
                f"{'not true' if key == unwanted[plain] else 'true'} or does not belong to this model; "
                f"transformers would leave the tensor out"
            )
        if left:
            some = ", ".join(short(name) for name in sorted(left.values())[:3])
            raise InputError(f"{config.folder}: {len(left)} tensors have no place in {self.architecture}: {some}")
        return tensors

    def _number(self, plain: str, left: dict[str, str], files: Files, config: Config) -> float:
        """The value of a tensor with one element, which is taken from `left`."""
        name = left.pop(plain, None)
        if name is None:
            raise InputError(f"{config.folder}: {plain}: missing from the checkpoint; is a shard missing?")
        tensor = files[name].tensor(name)
        if tensor.rows * tensor.columns != 1:
            raise InputError(f"{files[name].path}: {name}: shape {tensor.shape}, wanted one number")
        found = decode(tensor.data(), tensor.type).item()
        if not math.isfinite(found):
            raise InputError(f"{files[name].path}: {name}: found {found}, wanted a finite number")
        return float(found)

    def _open(self, name: str, row: Row, files: Files, config: Config, sizes: Sizes) -> Tensor:
        found, wanted = files[name].shape(name), sizes.shape(row.shape)
        if found != wanted:
            meaning = " × ".join(config.spell_all(spell_out(size)) for size in row.shape)
            raise InputError(
                f"{files[name].path}: {name}: shape {found}, wanted {wanted}, which is {meaning} of config.json"
            )
        return files[name].tensor(name)

    def _refuse_missing(self, missing: Mapping[str, str], config: Config) -> None:
        for target, name in missing.items():
            if target == HEAD and config.get("tie_word_embeddings"):
                continue
            reason = "config.json says tie_word_embeddings false" if target == HEAD else "is a shard missing?"
            raise InputError(f"{config.folder}: {name}: missing from the checkpoint; {reason}")

    def _share(self, names: dict[str, str], files: Files, config: Config) -> dict[str, str]:
        """`names` without the output matrix if it equals the embedding; only one of the two may be stored."""
        plain_head, plain_embedding = self.source_of(HEAD), self.source_of(EMBEDDING)
        if not config.get("tie_word_embeddings") or plain_head not in names:
            return names
        embedding = names.setdefault(plain_embedding, names[plain_head])
        head = names[plain_head]
        if embedding == head or _have_same_values(files[embedding], embedding, files[head], head):
            del names[plain_head]
        else:
            config.notes.append(
                f"config.json says tie_word_embeddings, but the output matrix ({plain_head.removesuffix('.weight')}) "
                f"differs from the embedding; both are kept"
            )
        return names

    def _complete_vocab(self, names: Mapping[str, str], files: Files, config: Config) -> None:
        """Without a vocab_size, the embedding's rows count."""
        name = names.get(self.source_of(EMBEDDING))
        rows = (files[name].shape(name) or (0,))[0] if name else 1
        config.values["vocab_size"] = config.integer("vocab_size", rows)

    def to_checkpoint(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> list[Tensor]:
        """Float tensors of a GGUF file under their checkpoint names. `config` comes from `restore`.

        Raises InputError for a tensor that is missing or not in the table.
        """
        known = {tensor.name: tensor for tensor in tensors if tensor.name not in DERIVED}
        sizes, written = Sizes(config), set[str]()
        changed: list[Tensor] = []
        for row in expand(self.rows, config):
            stated = row.when.removeprefix("not ") in config
            if written.issuperset(row.targets) or (stated and not row.is_wanted(config)):
                continue
            absent = [target for target in row.targets if target not in known]
            if absent and (row.when or row.optional or HEAD in row.targets):
                continue
            if absent:
                raise InputError(f"{absent[0]}: missing; is this file whole?")
            results = row.change.to_checkpoint([known.pop(target) for target in row.targets], sizes)
            changed += [replace(tensor, name=name) for name, tensor in zip(row.sources(sizes), results, strict=True)]
            written.update(row.targets)
        for key, number in self.layer_keys.items():
            for layer, value in enumerate(config[f"_{key}"]):
                changed.append(constant(number.checkpoint.replace("{}", str(layer)), np.float32(value), number.shape))
        if known:
            raise InputError(f"{len(known)} tensors have no place in {self.models[0]}: {', '.join(list(known)[:3])}")
        return changed


def constant(name: str, values: NDArray[np.float32] | np.float32, shape: tuple[int, ...]) -> Tensor:
    """A float32 vector, or a single number, as a tensor."""
    data = np.asarray(values, np.float32).reshape(1, -1).view(np.uint8)
    return Tensor(name, GGMLType.F32, shape, lambda start, stop: data[start:stop])


def _have_same_values(file: PlainFile, name: str, other_file: PlainFile, other: str) -> bool:
    if file is other_file and file.is_same(name, other):
        return True
    one, two = file.tensor(name), other_file.tensor(other)
    if (one.type, one.shape) != (two.type, two.shape):
        return False
    step = max(1, _WINDOW // max(1, one.row_bytes))
    windows = ((start, min(start + step, one.rows)) for start in range(0, one.rows, step))
    return all(np.array_equal(one.read(*window), two.read(*window)) for window in windows)
