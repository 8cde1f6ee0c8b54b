"""How much memory a model takes when it runs on the CPU, from its header alone, and how much there is."""

from dataclasses import dataclass
from pathlib import Path

from lltool.engine.batch import PAGE, CacheType
from lltool.engine.cache import MOST_CHECKPOINTS
from lltool.engine.config import ModelConfig
from lltool.engine.cpu.executor import HEAD_ROWS
from lltool.engine.models.architectures import trace_header
from lltool.engine.program import Program
from lltool.engine.state import StateLayout, choose_room
from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.header import align
from lltool.gguf.source import Source

PYTHON = 48 << 20
"""Bytes of the process itself: Python, numpy and lltool."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes, at most, that a run takes.

    `weights` are the pages of the file, `cache` the keys and values of all sequences and states of fixed size, `work`
    the buffers of a batch, `process` Python and its libraries.
    """

    weights: int
    cache: int
    work: int
    process: int = PYTHON

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work + self.process


class MemoryModel:
    """The memory that a model needs, for any context. Raises InputError if this version cannot run it."""

    def __init__(self, source: Source, size: int) -> None:
        """`size` is that of the model's file in bytes. Of matrices, only shapes and types are read."""
        self._bytes = size
        self.config: ModelConfig
        self._program: Program
        self.config, self._program = trace_header(source)
        self._state = StateLayout.of(self._program)

    def need(
        self,
        context: int,
        *,
        sequences: int = 1,
        batch: int = 512,
        threads: int = 1,
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
    ) -> MemoryNeed:
        """The memory for `sequences` of `context` tokens each, as `load_model` would reserve it."""
        pages, batch = choose_room(is_causal=self.config.is_causal, context=context, sequences=sequences, batch=batch)
        cache = pages * page_bytes(self._state, cache_type_k, cache_type_v)
        slots = sequences * (1 + MOST_CHECKPOINTS) * self._state.slot_bytes
        return MemoryNeed(self._bytes, cache + slots, self._work(batch, threads))

    def largest_context(self, available: int, **options: object) -> int:
        """The most tokens, up to the model's own context, whose memory is at most `available` bytes; 0 if none is."""
        low, high = 0, -(-self.config.context_length // PAGE)
        while low < high:
            middle = (low + high + 1) // 2
            if self.need(middle * PAGE, **options).total <= available:  # type: ignore[arg-type]
                low = middle
            else:
                high = middle - 1
        return min(low * PAGE, self.config.context_length)

    def _work(self, batch: int, threads: int) -> int:
        """The buffers of a batch: activations, logits, and for the widest matrix its inputs in 8 bits and as floats."""
        activations = 4 * sum(self._program.arena_widths.values()) * batch
        logits = 4 * min(HEAD_ROWS, batch) * self._program.logits.width
        widest = max(weight.columns for weight in self._program.weights.values() if len(weight.shape) > 1)
        inputs = batch * (widest + widest // 2 + widest + 4 * widest)  # codes, scales, sums; floats
        a_thread = widest * (4 * 33 + 7)  # tiles of weights, and a token of its own
        return activations + logits + inputs + threads * a_thread


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a process can use before others are evicted or its container is killed; None if it is unknown."""
    limits = []
    meminfo, container = root / "proc/meminfo", root / "sys/fs/cgroup/memory.max"
    for line in meminfo.read_text().splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) << 10)
    if container.exists() and (limit := container.read_text().strip()).isdigit():
        limits.append(int(limit))
    return min(limits, default=None)


def page_bytes(state: StateLayout, cache_type_k: CacheType = "f16", cache_type_v: CacheType = "f16") -> int:
    """The bytes of a page, which holds the keys and values of PAGE tokens in all layers."""
    types = [GGMLType[name.upper()] for name in (cache_type_k, cache_type_v)]
    return sum(
        PAGE * part.heads * _cached_bytes(type, dim)
        for part in state.key_values
        for type, dim in zip(types, (part.key_dim, 0 if part.value_is_key else part.value_dim), strict=True)
        if dim
    )


def _cached_bytes(type: GGMLType, dim: int) -> int:
    """The bytes of a key or value, at most: some instruction sets keep plain types as 16-bit numbers with a scale."""
    plain = 0 if type in (GGMLType.Q8_0, GGMLType.Q4_0) else 2 * align(dim, 16) + 4
    return max(row_bytes(type, dim), plain)
