"""Junk in a checkpoint's JSON files and headers causes an InputError or gives a model, never another exception."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import plan_conversion
from lltool.quant.convert.safetensors import open_safetensors
from tests.tiny_checkpoints import make_checkpoint

JUNK: tuple[Any, ...] = (None, True, -1, 0, 2**70, 1.5, float("nan"), "text", [], [1], ["x", None], {}, {"a": {"b": 1}})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value in a JSON document, but only to the first few items of arrays."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        if len(path) < 4 and key != "vocab":
            found += places(item, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = value.copy()
    copy[path[0]] = replaced(copy[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize("family", ["llama3-rope", "gemma3"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_junk_in_json(family: str, file: str, tmp_path: Path) -> None:
    folder = make_checkpoint(family, tmp_path / "m")
    original = json.loads((folder / file).read_text())
    refused = 0
    random.seed(0)
    cases = [(path, junk) for path in places(original) for junk in JUNK]
    for path, junk in random.sample(cases, min(len(cases), 250)):
        (folder / file).write_text(json.dumps(replaced(original, path, junk)))
        try:
            plan_conversion(folder)
        except InputError:
            refused += 1
    assert refused > 5 or file not in ("config.json", "tokenizer.json")


def test_junk_in_safetensors_headers(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "m")
    original = (folder / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(original[:8], "little")
    generator = random.Random(1)
    path = tmp_path / "x.safetensors"
    shutil.copy(folder / "model.safetensors", path)
    for _ in range(300):
        damaged = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(length)] = generator.randrange(256)
        path.write_bytes(damaged[: generator.choice([len(damaged), generator.randrange(len(damaged))])])
        try:
            file = open_safetensors(path)
            for name in file.entries:
                file.tensor(name).data()
        except InputError:
            pass
