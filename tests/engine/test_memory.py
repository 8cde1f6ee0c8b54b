"""The memory that a model needs, by hand and against the peak of real runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine.batch import CacheType
from lltool.engine.memory import MemoryModel, available_memory
from lltool.eval.bench.machine.footprint import measure_footprint
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.reader import open_gguf
from tests.engine.tiny_gguf import HEAD_DIM, KV_HEADS, LAYERS, metadata, tensors, write_model


def test_the_cache_by_hand(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", metadata(), tensors())
    with open_gguf(path) as file:
        model = MemoryModel(file, file.size)
        need = model.need(100, sequences=3)
        halves, scale = HEAD_DIM * 2, 4
        assert need.cache == 3 * 128 * LAYERS * KV_HEADS * 2 * (halves + scale)  # whole pages of 64 tokens
        assert need.weights == path.stat().st_size
        floats = model.need(64, cache_type_k="f32")
        assert floats.cache == 64 * LAYERS * KV_HEADS * (HEAD_DIM * 4 + halves + scale)
        assert model.largest_context(need.total, sequences=3) == 128
        assert model.largest_context(need.total - 1, sequences=3) == 64
        assert model.largest_context(0) == 0
        assert model.largest_context(1 << 40) == 512


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "context", "type"),
    [
        ("smollm2-q4_1", 4096, "f16"),
        ("smollm2-q4_1", 2048, "q8_0"),
        ("gemma3-270m-q4_k_m", 2048, "f16"),
        ("qwen25coder-0.5b-q4_k_m", 512, "f16"),
    ],
)
def test_a_run_takes_what_was_said(name: str, context: int, type: CacheType, real_model: Callable[[str], Path]) -> None:
    path = real_model(name)
    ran = Settings(path, threads=1, load_mode="mmap", type_k=type, type_v=type)
    peak = measure_footprint(ran, Workload(context, 0)).peak
    assert peak is not None
    with open_gguf(path) as file:
        need = MemoryModel(file, file.size).need(context, cache_type_k=type, cache_type_v=type)
    assert 0.8 * need.total < peak <= need.total


def test_available_memory(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000 kB\nMemAvailable: 8000 kB\n")
    assert available_memory(tmp_path) == 8000 << 10
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8000 << 10
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("4096000\n")
    assert available_memory(tmp_path) == 4096000
