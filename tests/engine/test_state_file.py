"""Saved states: a text goes on from its file as from the cache, bit for bit; a file that does not fit is refused."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.engine.scheduler import Scheduler
from lltool.engine.state_file import StateFile, save_state
from lltool.gguf.errors import InputError
from tests.engine.server.tiny_server import write_tiny

IDS = np.random.default_rng(1).integers(0, 90, 150).astype(np.int32)
MORE = IDS[:9]


def load(path: Path, executor: str = "cpu", **options: Any) -> Model:
    return load_model(path, executor=executor, context=256, threads=1, deterministic=True, **options)


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["windows", "lfm2", "deepseek2"])
def test_a_text_goes_on_from_its_file(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str, executor: str
) -> None:
    file = tmp_path / "state"
    with load(tiny_model(kind), executor) as model:
        sequence = model.new_sequence()
        for start in range(0, 150, 50):
            model.evaluate(sequence, IDS[start : start + 50])
            sequence.checkpoint()
        size = save_state(file, model, IDS, sequence)
        wanted = model.forward([(sequence, MORE, "all")]).all()
        has_slots = sequence.slot is not None
    assert size == file.stat().st_size
    assert has_slots == (kind == "lfm2")
    with load(tiny_model(kind), executor, sequences=3) as model, StateFile(file, model) as saved:
        np.testing.assert_array_equal(saved.ids, IDS)
        model.evaluate(model.new_sequence(), IDS[:70])  # so that the pages are not new
        sequence = model.new_sequence()
        saved.claim(sequence)
        saved.fill(sequence)
        fork = sequence.fork()
        np.testing.assert_array_equal(model.forward([(sequence, MORE, "all")]).all(), wanted)
        again = fork.truncate(120)
        assert again == (20 if has_slots else 0), "a state of fixed size goes back to its checkpoint at 100"
        fresh = model.new_sequence()
        found = model.evaluate(fork, IDS[120 - again :])
        exact = 0 if executor == "cpu" else 1e-5  # of the reference, rows depend on the batch
        np.testing.assert_allclose(found, model.evaluate(fresh, IDS), atol=exact, rtol=0)


@pytest.mark.parametrize("cache_type", ["f32", "bf16", "q8_0", "q4_0"])
def test_every_type_of_the_cache(tiny_model: Callable[[str], Path], tmp_path: Path, cache_type: Any) -> None:
    options: dict[str, Any] = {"cache_type_k": cache_type, "cache_type_v": cache_type}
    with load(tiny_model("qwen3"), **options) as model:
        sequence = model.new_sequence()
        model.evaluate(sequence, IDS)
        save_state(tmp_path / "state", model, IDS, sequence)
        wanted = model.evaluate(sequence, MORE)
    with load(tiny_model("qwen3"), **options) as model, StateFile(tmp_path / "state", model) as saved:
        sequence = model.new_sequence()
        saved.claim(sequence)
        saved.fill(sequence)
        np.testing.assert_array_equal(model.evaluate(sequence, MORE), wanted)
    with load(tiny_model("qwen3")) as model, pytest.raises(InputError, match=f"cache-type-k {cache_type}, and now"):
        StateFile(tmp_path / "state", model)


@pytest.fixture(scope="module")
def saved(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("saved") / "state"
    with load(tiny_model("windows")) as model:
        sequence = model.new_sequence()
        model.evaluate(sequence, IDS)
        save_state(file, model, IDS, sequence)
    return file.read_bytes()


def restored(data: bytes, path: Path, folder: Path, **options: Any) -> None:
    (folder / "state").write_bytes(data)
    with load_model(path, **{"context": 256, "threads": 1, "deterministic": True, **options}) as model:
        scheduler = Scheduler(model)
        try:
            with StateFile(folder / "state", model) as file:
                scheduler.keep_text(file.ids, file.claim, file.fill)
        finally:
            assert model.free_pages == model.setup.pages - sum(-(-len(ids) // 64) for ids in scheduler.kept)


def with_header(data: bytes, **changes: Any) -> bytes:
    """The file with other values in its header, and a check sum that fits."""
    (size,) = struct.unpack_from("<I", data, 12)
    header = json.dumps({**json.loads(data[16 : 16 + size]), **changes}).encode()
    body = data[:12] + struct.pack("<I", len(header)) + header + data[16 + size : -4]
    return body + struct.pack("<I", zlib.crc32(body))


def test_damaged_files(saved: bytes, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = tiny_model("windows")
    restored(saved, path, tmp_path)
    restored(with_header(saved), path, tmp_path)
    for length in (0, 7, 15, 40, 500, len(saved) // 2, len(saved) - 1):
        with pytest.raises(InputError, match=f"^{tmp_path / 'state'}: [^\n]*$"):
            restored(saved[:length], path, tmp_path)
    with pytest.raises(InputError, match="bytes, wanted"):
        restored(saved + b"x", path, tmp_path)
    for place in (3, 9, 13, 30, len(saved) // 2, len(saved) - 1):
        with pytest.raises(InputError):
            restored(saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :], path, tmp_path)
    with pytest.raises(InputError, match="version 2 of the format, wanted 1"):
        restored(saved[:8] + struct.pack("<I", 2) + saved[12:], path, tmp_path)
    bad: list[dict[str, Any]] = [
        {"tokens": 0}, {"tokens": -1}, {"tokens": "1"}, {"tokens": 10**30}, {"tokens": True}, {"fits": 3}, {"fits": {}},
        {"checkpoints": [1]}, {"checkpoints": 1}, {"checkpoints": ["a"]},
    ]  # fmt: skip
    (size,) = struct.unpack_from("<I", saved, 12)
    for token in (-1, 96, 2**31 - 1):
        body = saved[: 16 + size] + struct.pack("<i", token) + saved[20 + size : -4]
        with pytest.raises(InputError, match="a token that the vocabulary does not have"):
            restored(body + struct.pack("<I", zlib.crc32(body)), path, tmp_path)
    for changes in bad:
        with pytest.raises(InputError):
            restored(with_header(saved, **changes), path, tmp_path)


def test_files_of_other_settings(saved: bytes, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="computed with another model"):
        restored(saved, write_tiny(tmp_path / "other.gguf", seed=1), tmp_path)
    path = tiny_model("windows")
    with pytest.raises(InputError, match="deterministic True, and now it is False"):
        restored(saved, path, tmp_path, deterministic=False)
    with pytest.raises(InputError, match="another executor or instruction set"):
        restored(saved, path, tmp_path, instruction_set="scalar")
    with pytest.raises(InputError, match="a text of 150 tokens does not fit the context of 100"):
        restored(saved, path, tmp_path, context=100)
    restored(saved, path, tmp_path, context=200, threads=2)


def test_kept_texts_give_way(saved: bytes, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A text is restored in place of those that are kept, but not of one that runs."""
    (tmp_path / "state").write_bytes(saved)
    with load(tiny_model("windows")) as model:  # 4 pages
        dialogue = Dialogue(model)
        list(Generation(dialogue, IDS[:100].tolist(), Sampler(temperature=0), 3))
        scheduler = dialogue._scheduler
        assert len(scheduler.kept) == 1
        with StateFile(tmp_path / "state", model) as file:
            scheduler.keep_text(file.ids, file.claim, file.fill)
        assert [len(ids) for ids in scheduler.kept] == [150]
        generation = Generation(dialogue, [*IDS.tolist(), 3], Sampler(temperature=0), 60)
        next(generation)
        assert generation.timings.cached == 150
        with StateFile(tmp_path / "state", model) as file, pytest.raises(InputError, match="no room for a text of 150"):
            scheduler.keep_text(file.ids, file.claim, file.fill)
        assert len(list(generation)) == 59
