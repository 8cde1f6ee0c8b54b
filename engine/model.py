"""A model ready to run: sequences of tokens go in, logits come out."""

from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from lltool.engine.architectures import trace_program
from lltool.engine.batch import PAGE, Batch, CacheType, Executor, Precision
from lltool.engine.cache import PagePool, Sequence
from lltool.engine.compare import Compared
from lltool.engine.config import ModelConfig
from lltool.engine.observe import observe_linears
from lltool.engine.program import NOT_MULTIPLIED, Program, Weight
from lltool.engine.threads import Threads, check_threads
from lltool.engine.tuning import read_tuned
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.mapped import LoadMode, prefetch
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.source import Tensor
from lltool.quant.codec import decode

if TYPE_CHECKING:
    from lltool.engine.tokenizer import Tokenizer

DEFAULT_CONTEXT = 4096

Tokens = List[int] | NDArray[np.integer]
Wanted = Literal["all", "last", "none"] | NDArray[np.integer]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Setup:
    """What an executor is made for."""

    pages: int
    batch: int
    threads: Threads
    precision: Precision
    cache_type_k: CacheType
    cache_type_v: CacheType
    deterministic: bool = False
    instruction_set: str | None = None  # None: the process's own


def _make_reference(program: Program, setup: Setup) -> Executor:
    from lltool.engine.reference import ReferenceExecutor

    return ReferenceExecutor(program, setup.pages, cache_type_k=setup.cache_type_k, cache_type_v=setup.cache_type_v)


def _make_cpu(program: Program, setup: Setup) -> Executor:
    from lltool.engine.cpu import CpuExecutor

    return CpuExecutor(
        program,
        setup.pages,
        max_batch=setup.batch,
        threads=setup.threads,
        precision=setup.precision,
        cache_type_k=setup.cache_type_k,
        cache_type_v=setup.cache_type_v,
        deterministic=setup.deterministic,
        instruction_set=setup.instruction_set,
    )


EXECUTORS: dict[str, Callable[[Program, Setup], Executor]] = {"cpu": _make_cpu, "reference": _make_reference}


class LogitRows(Protocol):
    """Logits, or logarithms of probabilities, that come a block of at most `head_rows` rows at a time."""

    @property
    def rows(self) -> int: ...
    @property
    def head_rows(self) -> int: ...
    def block(self, start: int, stop: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Logits:
    """The logits that one `Model.forward` asked for, computed block by block; valid until the next one."""

    rows: int
    _model: "Model"
    _call: int

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Blocks in order: the number of the first row, and a view (n, V) that the next block overwrites."""
        for start in range(0, self.rows, self.head_rows):
            yield start, self.block(start, min(self.rows, start + self.head_rows))

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop), at most `head_rows`; a view that the next block overwrites."""
        assert self._call == self._model.calls, "logits of an earlier call"
        return self._model.executor.logits(start, stop)

    @property
    def head_rows(self) -> int:
        return self._model.executor.head_rows

    def score(self, targets: NDArray[np.integer]) -> NDArray[np.float64]:
        """Natural logarithm of the probability that row i gives to the token targets[i], (R,)."""
        assert len(targets) == self.rows
        assert self._call == self._model.calls, "logits of an earlier call"
        return self._model.executor.score(0, np.ascontiguousarray(targets, np.int32))

    def compare(self, base: "LogitRows", targets: NDArray[np.integer]) -> NDArray[np.float64]:
        """These rows against another model's, as `compare_rows` does, (R, 7); all logits are dropped block by block."""
        assert base.rows == self.rows == len(targets)
        out = np.empty((self.rows, len(Compared)))
        step = min(self.head_rows, base.head_rows)
        for start in range(0, self.rows, step):
            chosen = np.ascontiguousarray(targets[start : start + step], np.int32)
            block = base.block(start, start + len(chosen))
            assert self._call == self._model.calls, "logits of an earlier call"
            out[start : start + step] = self._model.executor.compare(start, block, chosen)
        return out

    def scored_blocks(
        self, targets: NDArray[np.integer]
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float64]]]:
        """Like `blocks`, each with the log-probabilities (n,) of its rows' targets."""
        for start, block in self.blocks():
            chosen = np.ascontiguousarray(targets[start : start + len(block)], np.int32)
            yield start, block, self._model.executor.score(start, chosen)

    def all(self) -> NDArray[np.float32]:
        """A copy of all rows, (R, V)."""
        out = np.empty((self.rows, self._model.config.vocab), np.float32)
        for start, block in self.blocks():
            out[start : start + len(block)] = block
        return out


class Model:
    """A loaded model. A sequence holds at most `context` tokens, a `forward` takes at most `setup.batch`."""

    def __init__(
        self, file: GGUFFile, config: ModelConfig, program: Program, executor: Executor, setup: Setup, context: int
    ) -> None:
        self.file = file
        self.config = config
        self.program = program
        self.executor = executor
        self.setup = setup
        self.context = context
        self.calls = 0
        self._pool = PagePool(setup.pages, executor.copy_page)

    @property
    def batch(self) -> int:
        return self.setup.batch

    @property
    def threads(self) -> int:
        """Of one token; batches can have others (`setup.threads`)."""
        return self.setup.threads.decode.threads

    @property
    def precision(self) -> Precision:
        return self.setup.precision

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        from lltool.engine.tokenizer import read_tokenizer

        return read_tokenizer(self.file)

    def new_sequence(self) -> Sequence:
        return Sequence(self._pool)

    def forward(self, pieces: List[tuple[Sequence, Tokens, Wanted]]) -> Logits:
        """Appends tokens to sequences, all in one batch.

        `wanted` says which of the piece's tokens want logits; the rows come in the order of the pieces. Raises
        InputError, and leaves the sequences as they were, for an unknown token id, a sequence longer than the context
        or a full cache.
        """
        assert len({id(sequence) for sequence, _, _ in pieces}) == len(pieces), "a sequence comes once in a batch"
        tokens = self._check(pieces)
        try:
            for sequence, ids, _ in pieces:
                sequence.reserve(len(ids))
        except InputError:
            for sequence, _, _ in pieces:
                sequence.truncate(sequence.length)  # gives back what the first of them got
            raise
        batch = make_batch(pieces, tokens)
        self.calls += 1
        self.executor.run(batch)
        for sequence, ids, _ in pieces:
            sequence.length += len(ids)
        return Logits(len(batch.outputs), self, self.calls)

    def evaluate(self, sequence: Sequence, tokens: Tokens) -> NDArray[np.float32]:
        """Appends tokens, in as many batches as it takes, and gives the logits (V,) behind the last one."""
        if len(tokens) == 0:
            raise InputError("no tokens to evaluate")
        self._check_length(sequence, len(tokens))
        starts = range(0, len(tokens), self.batch)
        for start in starts[:-1]:
            self.forward([(sequence, tokens[start : start + self.batch], "none")])
        logits: NDArray[np.float32] = self.forward([(sequence, tokens[starts[-1] :], "last")]).all()[0]
        return logits

    def close(self) -> None:
        """Lets go of the file and the cache; nothing but closing again is possible afterwards."""
        for name in ("program", "executor", "_pool"):
            self.__dict__.pop(name, None)
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, pieces: List[tuple[Sequence, Tokens, Wanted]]) -> NDArray[np.int32]:
        """All tokens (T,) of a batch that can be run."""
        tokens = _join([np.asarray(ids, np.int64) for _, ids, _ in pieces])
        if not 0 < len(tokens) <= self.batch:
            raise InputError(f"a batch of {len(tokens)} tokens, wanted 1 to {self.batch}")
        for sequence, ids, _ in pieces:
            self._check_length(sequence, len(ids))
        unknown = tokens.view(np.uint64) >= self.config.vocab
        if np.count_nonzero(unknown):
            raise InputError(f"token id {tokens[unknown][0]}, wanted one from 0 to {self.config.vocab - 1}")
        return tokens.astype(np.int32)

    def _check_length(self, sequence: Sequence, count: int) -> None:
        if sequence.length + count > self.context:
            raise InputError(
                f"{sequence.length + count} tokens do not fit the context of {self.context}; "
                "load the model with a larger one or shorten the text"
            )


def make_batch(pieces: List[tuple[Sequence, Tokens, Wanted]], tokens: NDArray[np.int32]) -> Batch:
    """The batch that appends each piece's tokens behind its sequence, whose pages are reserved already.

    `tokens` are those of all pieces. This runs for every token that is generated: a call of numpy costs as much as the
    rest of a line.
    """
    counts = [len(ids) for _, ids, _ in pieces]
    starts = [0, *accumulate(counts)]
    pasts = [sequence.length for sequence, _, _ in pieces]
    tables = [sequence.pages for sequence, _, _ in pieces]
    width = max(map(len, tables))
    rows = [start + _rows(wanted, n) for (_, _, wanted), start, n in zip(pieces, starts, counts, strict=False)]
    return Batch(
        tokens,
        positions=_join([np.arange(past, past + n, dtype=np.int32) for past, n in zip(pasts, counts, strict=True)]),
        sequences=_join([np.array([row], np.int32).repeat(n) for row, n in enumerate(counts)]),
        tables=np.array([pages + [0] * (width - len(pages)) for pages in tables], np.int32),
        outputs=_join(rows).astype(np.int32),
    )


def _join(arrays: List[NDArray[Scalar]]) -> NDArray[Scalar]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _rows(wanted: Wanted, count: int) -> NDArray[np.integer]:
    """The rows of a piece of `count` tokens that want logits."""
    if isinstance(wanted, np.ndarray):
        assert wanted.size == 0 or (wanted.min() >= 0 and wanted.max() < count)
        return wanted
    first = {"all": 0, "last": max(0, count - 1), "none": count}[wanted]
    return np.arange(first, count)


def load_model(
    path: str | Path,
    *,
    executor: str = "cpu",
    threads: int | Threads | None = None,
    context: int | None = None,
    sequences: int = 1,
    batch: int = 512,
    precision: Precision = "int8",
    cache_type_k: CacheType | None = None,
    cache_type_v: CacheType | None = None,
    deterministic: bool = False,
    load_mode: LoadMode = "mmap",
    instruction_set: str | None = None,
    observe: Callable[[str], bool] | None = None,
) -> Model:
    """Maps a GGUF model and makes it ready; weights are used where they lie.

    The cache has room for `sequences` of `context` tokens each (default: the model's own context, at most 4096).
    `threads` are as many for every batch, or two teams (default: what `lltool bench --autotune` found, or one a core).
    `precision` "f32" computes in float32 what "int8" multiplies in 8 bits. Keys and values are kept as `cache_type_k`
    and `cache_type_v` (default: f16, or f32 where all is computed in float32). `deterministic` makes a sequence's
    logits independent, to the bit, of how its tokens were cut into batches and of what else was in them. `load_mode`
    "none" reads the file into memory, "mlock" keeps it there. `instruction_set` is one of those that the machine runs
    (default: `isa.chosen()`); `observe` says of which matrices, by name, the inputs are summed up
    (`executor.take_observations()`). Raises InputError naming file and tensor or key.
    """
    for name, count in (("context", context), ("sequences", sequences), ("batch", batch)):
        if count is not None and count < 1:
            raise InputError(f"{name} {count}, wanted at least 1")
    if threads is not None:
        check_threads(Threads.of(threads))
    default: CacheType = "f32" if precision == "f32" or executor == "reference" else "f16"
    cache_types = (cache_type_k or default, cache_type_v or default)
    _check_choice("executor", executor, EXECUTORS)
    _check_choice("precision", precision, get_args(Precision))
    _check_choice("cache_type_k", cache_types[0], get_args(CacheType))
    _check_choice("cache_type_v", cache_types[1], get_args(CacheType))
    _check_choice("load_mode", load_mode, get_args(LoadMode))
    file = open_gguf(path, load_mode)
    if load_mode == "mmap":
        prefetch(file.paths)
    try:
        weights = {tensor.name: _weight(tensor) for tensor in file.tensors}
        config = ModelConfig.from_gguf(file.metadata, weights)
        program = trace_program(config, weights)
        if observe:
            program = observe_linears(program, observe)
        context = _choose_context(context, config)
        pages = sequences * -(-context // PAGE)
        batch = min(batch, pages * PAGE)
        chosen = _choose_threads(threads, file)
        setup = Setup(pages, batch, chosen, precision, *cache_types, deterministic, instruction_set)
        return Model(file, config, program, _make_executor(executor, program, setup), setup, context)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_choice(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise InputError(f"{name} {value!r}, wanted one of {', '.join(known)}")


def _make_executor(kind: str, program: Program, setup: Setup) -> Executor:
    try:
        return EXECUTORS[kind](program, setup)
    except MemoryError:
        tokens = setup.pages * PAGE
        raise InputError(f"a cache of {tokens} tokens does not fit in memory; ask for less context") from None


def _choose_context(wanted: int | None, config: ModelConfig) -> int:
    if wanted is not None and wanted > config.context_length:
        raise InputError(f"context {wanted}, the model was made for {config.context_length} at most")
    return wanted or min(config.context_length, DEFAULT_CONTEXT)


def _choose_threads(wanted: int | Threads | None, file: GGUFFile) -> Threads:
    """Those asked for, or found to be best for models of this size, or one a core."""
    tuned = read_tuned(file.size) if wanted is None else None
    return tuned.threads if tuned else Threads.of(wanted)


def _weight(tensor: Tensor) -> Weight:
    """Matrices stay in the map; vectors, which kernels want in float32, are decoded where they are not."""
    if len(tensor.shape) != 1 or tensor.type == GGMLType.F32 or tensor.type in NOT_MULTIPLIED:
        return Weight(tensor.name, tensor.type, tensor.shape, tensor.data())
    values = decode(tensor.data(), tensor.type)
    return Weight(tensor.name, GGMLType.F32, tensor.shape, values.view(np.uint8))
