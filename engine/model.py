"""A loaded model: it takes sequences of tokens and returns their logits."""

from collections.abc import Callable
from collections.abc import Sequence as List
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, Self, get_args

import numpy as np
from numpy.typing import NDArray

from lltool.engine.adapters import Adapter, adapt_program, open_adapter, scales_of
from lltool.engine.batch import CacheType, Precision
from lltool.engine.cache import MOST_CHECKPOINTS, Sequence, StatePool
from lltool.engine.config import ModelConfig
from lltool.engine.cpu.threads import Threads, check_threads
from lltool.engine.cpu.tuning import choose_threads
from lltool.engine.executor import Executor, SlotExecutor
from lltool.engine.executors import EXECUTORS, Setup, make_executor
from lltool.engine.inputs import token_ids, whole_number
from lltool.engine.logits import Logits
from lltool.engine.models.architectures import trace_program
from lltool.engine.models.heads import end_with_states
from lltool.engine.models.pooling import Pooling
from lltool.engine.operations.observe import observe_linears
from lltool.engine.pieces import Wanted, check_choice, join, make_batch, wanted_rows
from lltool.engine.program import Program, read_weight
from lltool.engine.state import StateLayout, choose_room
from lltool.gguf.errors import FileChanged, InputError
from lltool.gguf.mapped import LoadMode
from lltool.gguf.reader import GGUFFile, open_gguf

if TYPE_CHECKING:
    from lltool.engine.gpu.placement import Placement
    from lltool.engine.grammar.compiler import GrammarCompiler
    from lltool.engine.text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 4096

Tokens = List[int] | NDArray[np.integer]
Output = Literal["logits", "hidden", "pooled"]


class Model:
    """A loaded model. A sequence holds at most `context` tokens; one `forward` takes at most `setup.batch`.

    Threads may share a model: each call waits for its turn, and turns are given in the order of the calls. Only one
    thread at a time may use a sequence, or generate with it. A closed model refuses every call with an InputError.
    """

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        program: Program,
        executor: Executor,
        setup: Setup,
        context: int,
        output: Output = "logits",
        adapters: List[Adapter] = (),
    ) -> None:
        self.file = file
        self.config = config
        self.setup = setup
        self.context = context
        self.output = output
        self.adapters = tuple(adapters)
        self.calls = 0
        self._pool = StatePool(setup.pages, executor.copy_page)
        if isinstance(executor, SlotExecutor):
            self._pool = StatePool(setup.pages, executor.copy_page, slots=setup.slots, copy_slot=executor.copy_slot)
        self._opened: _Opened | None = _Opened(program, executor)

    @property
    def batch(self) -> int:
        return self.setup.batch

    @property
    def threads(self) -> int:
        """The number of threads for one token; batches can have another number (`setup.threads`)."""
        return self.setup.threads.decode.threads

    @property
    def precision(self) -> Precision:
        return self.setup.precision

    @property
    def program(self) -> Program:
        return self._open().program

    def check_gives(self, *outputs: Output) -> None:
        """Raises InputError unless the model was loaded for one of these outputs."""
        if self.output not in outputs:
            if outputs == ("logits",):
                try:
                    _check_output(self.config, "logits")
                except InputError as error:
                    raise InputError(f"{self.file.path}: {error}") from None
            wanted = " or ".join(map(repr, outputs))
            raise InputError(
                f"{self.file.path}: was loaded with output={self.output!r}, and this wants {wanted}; load it anew"
            )

    @property
    def executor(self) -> Executor:
        return self._open().executor

    @property
    def tokenizer(self) -> "Tokenizer":
        opened = self._open()
        if opened.tokenizer is None:
            from lltool.engine.text.tokenizer import read_tokenizer

            opened.tokenizer = read_tokenizer(self.file)
        return opened.tokenizer

    @property
    def grammars(self) -> "GrammarCompiler":
        """What makes matchers of constraints on texts of this model."""
        opened = self._open()
        if opened.grammars is None:
            from lltool.engine.grammar.compiler import GrammarCompiler

            opened.grammars = GrammarCompiler(self.tokenizer, self.config.vocab)
        return opened.grammars

    @property
    def free_pages(self) -> int:
        """The number of cache pages that no sequence holds."""
        self._open()
        return len(self._pool.free)

    def turn(self) -> AbstractContextManager[object]:
        """`with model.turn():` makes other threads wait, so that several calls run without any other in between."""
        return self._pool.turns.wait()

    def new_sequence(self, scales: List[float] | None = None) -> Sequence:
        """An empty sequence, whose tokens are computed with these scales of `adapters` (default: each one's own)."""
        self._open()
        return Sequence(self._pool, scales=scales_of(self.adapters, scales))

    def forward(self, pieces: List[tuple[Sequence, Tokens, Wanted]], types: List[Tokens] | None = None) -> Logits:
        """Appends tokens to sequences, all in one batch; `types` are those of each piece's tokens (default: the first).

        A piece for an encoder is a whole text, of a new sequence. `wanted` says for which tokens of a piece to compute
        logits; the rows follow the order of the pieces. Raises InputError, and leaves the sequences as they were, if a
        token id is unknown, a sequence belongs to another model, appears twice or exceeds the context, or the cache is
        full; FileChanged if another process has written to the model's file or truncated it; TypeError if the tokens
        are not token ids.
        """
        checked = [(sequence, token_ids(ids, self.config.vocab), wanted) for sequence, ids, wanted in pieces]
        with self.turn():
            return self._append(checked, self._check_types(checked, types))

    def evaluate(
        self, sequence: Sequence, tokens: Tokens, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Appends tokens, in as many batches as needed, and returns a copy of the logits (V,) after the last token.

        The copy is written to `out`, if given. Each batch takes a turn of its own. Raises what `forward` raises, before
        the first batch runs.
        """
        ids = token_ids(tokens, self.config.vocab)
        if not len(ids):
            raise InputError("no tokens to evaluate")
        last = (len(ids) - 1) // self.batch * self.batch
        if last:
            with self.turn():
                self._check_sequence(sequence, len(ids))
                sequence.reserve(len(ids))
        for start in range(0, last, self.batch):
            with self.turn():
                self._append([(sequence, ids[start : start + self.batch], "none")])
        with self.turn():
            row: NDArray[np.float32] = self._append([(sequence, ids[last:], "last")]).block(0, 1)[0]
            if out is None:
                return row.copy()
            out[:] = row
        return out

    def close(self) -> None:
        """Releases the file, the cache and the threads; afterwards the model can only be closed again.

        The file stays mapped as long as anything still refers to an array of its data.
        """
        with self.turn():
            self._opened = None
            self._pool.close()
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):  # a changed file may be the cause
                self.file.check_unchanged()
        finally:
            self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a model maps a file and owns threads, so it cannot be copied or pickled; load it again instead"
        )

    def _open(self) -> "_Opened":
        if self._opened is None:
            raise InputError(f"{self.file.path} is closed; load it again")
        return self._opened

    def _check_types(
        self, pieces: List[tuple[Sequence, NDArray[np.int32], Wanted]], types: List[Tokens] | None
    ) -> NDArray[np.int32] | None:
        """The types of a batch's tokens, of which there is one for each, among those that the file has."""
        if types is None:
            return None
        table = self.program.weights.get("token_types.weight")
        checked = [token_ids(of_piece, 1 if table is None else table.rows) for of_piece in types]
        if [len(of_piece) for of_piece in checked] != [len(ids) for _, ids, _ in pieces]:
            raise InputError("types of other numbers of tokens than the pieces have; wanted one for each token")
        return join(checked)

    def _append(
        self, pieces: List[tuple[Sequence, NDArray[np.int32], Wanted]], types: NDArray[np.int32] | None = None
    ) -> Logits:
        """Runs a batch. The caller must hold the turn."""
        executor = self.executor
        if len({id(sequence) for sequence, _, _ in pieces}) < len(pieces):
            raise InputError("a sequence appears twice in a batch; pass all its tokens in one piece")
        for sequence, ids, _ in pieces:
            self._check_sequence(sequence, len(ids))
        total = sum(len(ids) for _, ids, _ in pieces)
        if not 0 < total <= self.batch:
            raise InputError(f"a batch of {total} tokens, wanted 1 to {self.batch}")
        rows = [wanted_rows(wanted, len(ids)) for _, ids, wanted in pieces]
        try:
            for sequence, ids, _ in pieces:
                sequence.reserve(len(ids))
        except InputError:
            for sequence, _, _ in pieces:
                sequence.truncate(sequence.length)  # returns the pages that some of them reserved
            raise
        batch = make_batch([(sequence, ids) for sequence, ids, _ in pieces], rows, types)
        self.calls += 1
        try:
            executor.run(batch)
            self.file.check_unchanged()
        except BaseException:
            for sequence, _, _ in pieces:
                sequence.spoil()
            raise
        for sequence, ids, _ in pieces:
            sequence.advance(len(ids))
        return Logits(len(batch.outputs), self, self.calls)

    def _check_sequence(self, sequence: Sequence, count: int) -> None:
        """Raises TypeError or InputError if `count` tokens cannot be appended."""
        if not isinstance(sequence, Sequence):
            raise TypeError(f"{sequence!r}, wanted a sequence of this model; new_sequence() makes one")
        if sequence.pool is not self._pool:
            raise InputError(
                f"{self.file.path}: a sequence of another model was given, and this model cannot read its cache; "
                "make one with new_sequence() of this model"
            )
        if sequence.length and not self.config.is_causal:
            raise InputError("a sequence of an encoder is one text, evaluated whole; make a new one for each text")
        if sequence.length + count > self.context:
            raise InputError(
                f"{sequence.length + count} tokens do not fit the context of {self.context}; "
                "load the model with a larger context or shorten the text"
            )


@dataclass
class _Opened:
    """The parts of a model that closing it releases."""

    program: Program
    executor: Executor
    tokenizer: "Tokenizer | None" = None
    grammars: "GrammarCompiler | None" = None


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
    output: Output | None = "logits",
    pooling: Pooling | None = None,
    placement: "Placement | None" = None,
    lora: List[tuple[str | PathLike[str], float]] = (),
) -> Model:
    """Maps a GGUF model into memory and makes it ready to run; the weights are read in place.

    The cache has room for `sequences` of `context` tokens each (default: the model's own context, at most 4096).
    `threads` is one number for every batch, or two teams (default: what `lltool bench --autotune` found, else one
    thread per core). `precision` "f32" computes the products in float32 that "int8" computes in 8 bits. The cache
    stores keys and values as `cache_type_k` and `cache_type_v` (default: f16, or f32 if everything is computed in
    float32). `deterministic` makes a sequence's logits batch-invariant: bit for bit the same however its tokens are
    split into batches and whatever else is in them. `load_mode` "none" reads the file into memory, "mlock" maps it
    and locks it in memory. `instruction_set` is one that the machine supports (default: `isa.chosen()`). `observe`
    selects, by name, the matrices whose inputs are summed up (`executor.take_observations()`). With `output` "hidden",
    there are no logits, and `Logits.states` gives the last normed hidden states. With "pooled", a row is what the file
    makes of a text, the vector of an encoder or the scores of a reranker; of another model it is the hidden state,
    which engine/embed.py pools; None is "logits" if the model gives them, else "pooled". `pooling` is the file's if
    none is given. `lora` are LoRA adapters in GGUF files with the scales that sequences have by default; they are
    applied while the model runs, and `new_sequence` can choose other scales. An encoder takes as many texts at once
    as `batch` has tokens, whatever `sequences` says. `placement` says which layers run on a GPU (default: none). Raises
    InputError naming the file and the tensor or key.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path {path!r}, wanted the path of a GGUF file")
    for name, count in (("context", context), ("sequences", sequences), ("batch", batch)):
        if count is not None:
            whole_number(name, count, 1)
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic {deterministic!r}, wanted True or False")
    if observe is not None and not callable(observe):
        raise TypeError(f"observe {observe!r}, wanted a function of a matrix's name")
    if threads is not None:
        check_threads(Threads.of(threads))
    default: CacheType = "f32" if precision == "f32" or executor == "reference" else "f16"
    cache_types = (cache_type_k or default, cache_type_v or default)
    check_choice("executor", executor, EXECUTORS)
    check_choice("precision", precision, get_args(Precision))
    check_choice("cache_type_k", cache_types[0], get_args(CacheType))
    check_choice("cache_type_v", cache_types[1], get_args(CacheType))
    check_choice("load_mode", load_mode, get_args(LoadMode))
    if output is not None:
        check_choice("output", output, get_args(Output))
    if pooling is not None:
        check_choice("pooling", pooling, get_args(Pooling))
    file = open_gguf(path, load_mode)
    if load_mode == "mmap":
        file.prefetch()
    try:
        weights = {tensor.name: read_weight(tensor) for tensor in file.tensors}
        config = ModelConfig.from_gguf(file.metadata, weights)
        if output is None:
            output = "logits" if config.is_causal and not config.pooling.ranks else "pooled"
        _check_output(config, output)
        context = _choose_context(context, config)
        config = replace(config, context=context)
        if pooling:
            config = replace(config, pooling=replace(config.pooling, kind=pooling))
        program = trace_program(config, weights)
        if observe:
            program = observe_linears(program, observe)
        if output == "hidden" or (output == "pooled" and config.is_causal and not config.pooling.ranks):
            program = end_with_states(program, config)
        adapters = [open_adapter(place, scale, id) for id, (place, scale) in enumerate(lora)]
        program = adapt_program(program, config.architecture, adapters)
        pages, batch = choose_room(is_causal=config.is_causal, context=context, sequences=sequences, batch=batch)
        chosen = choose_threads(threads, file.size, file.path.name)
        slots = sequences * (1 + MOST_CHECKPOINTS) if StateLayout.of(program).slots else 0
        setup = Setup(pages, batch, chosen, precision, *cache_types, deterministic, instruction_set, slots, placement)
        made = make_executor(executor, program, setup)
        return Model(file, config, program, made, setup, context, output, adapters)
    except FileChanged:
        raise
    except InputError as error:
        file.check_unchanged()
        raise InputError(f"{path}: {error}") from None


def _check_output(config: ModelConfig, output: Output) -> None:
    """Raises InputError if the model does not give it."""
    if output != "logits":
        return
    if config.pooling.ranks:
        raise InputError("a reranker gives scores of documents, not logits of tokens; lltool rerank runs it")
    if not config.is_causal:
        raise InputError(f"an encoder ({config.architecture}) gives vectors of texts, not logits; lltool embed runs it")


def _choose_context(wanted: int | None, config: ModelConfig) -> int:
    if wanted is not None and wanted > config.context_length:
        raise InputError(f"context {wanted}, but the model was made for at most {config.context_length}")
    return wanted or min(config.context_length, DEFAULT_CONTEXT)
