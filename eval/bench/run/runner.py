"""Times workloads in our engine, on one loaded model whose past tokens are computed once."""

from collections.abc import Sequence
from time import perf_counter, perf_counter_ns
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lltool.engine.adapters import scaled_path
from lltool.engine.cache import Sequence as CachedSequence
from lltool.engine.model import load_model
from lltool.engine.pieces import Wanted
from lltool.eval.bench.run.plan import TimedRun, placement_of, threads_of
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.mapped import LoadMode


class Runner:
    """A model loaded with the settings `ran`, with cache for the largest of `runs`, and tokens drawn from `seed`."""

    name = "lltool"

    def __init__(self, ran: Settings, runs: Sequence[Workload], *, executor: str = "cpu", seed: int = 0) -> None:
        start = perf_counter()
        self.model = load_model(
            ran.model,
            executor=executor,
            threads=threads_of(ran),
            context=max(run.context for run in runs),
            sequences=max(run.sequences for run in runs) + any(run.depth for run in runs),
            batch=ran.ubatch,
            precision=ran.precision,
            cache_type_k=ran.type_k,
            cache_type_v=ran.type_v,
            load_mode=cast(LoadMode, ran.load_mode),
            placement=placement_of(ran),
            lora=[] if ran.lora == "none" else [scaled_path(part) for part in ran.lora.split("+")],
        )
        self.load_ms = (perf_counter() - start) * 1e3
        self._submitted = ran.batch
        self._random = np.random.default_rng(seed)
        self._past = self.model.new_sequence()

    def run(self, workload: Workload) -> TimedRun:
        """Times one repetition; the past of `depth` tokens is computed before the clock starts."""
        sequences = self._fork(workload)
        count = workload.prompt + workload.generation
        tokens = self._draw(workload.sequences, count)
        prompt, steps = tokens[:, : workload.prompt], range(workload.prompt, count)
        try:
            start = perf_counter_ns()
            ends = [start]
            if workload.prompt:
                self._feed(sequences, prompt)
                ends = [perf_counter_ns()]
            for step in steps:
                self._feed(sequences, tokens[:, step : step + 1])
                ends.append(perf_counter_ns())
        finally:
            for sequence in sequences:
                sequence.free()
        return TimedRun(ends[-1] - start, ends[0] - start, tuple(np.diff(ends).tolist()))

    def close(self) -> None:
        self.model.close()

    def _fork(self, workload: Workload) -> list[CachedSequence]:
        """Forks the past, and reserves the pages that the run will write, so that copying shared ones is not timed."""
        missing = workload.depth - self._past.length
        if missing > 0:
            self.model.evaluate(self._past, self._draw(1, missing)[0])
        sequences = [self._past.fork() for _ in range(workload.sequences)]
        for sequence in sequences:
            if again := sequence.truncate(workload.depth):  # of a state of fixed size, from its last checkpoint on
                self.model.evaluate(sequence, self._draw(1, again)[0])
            sequence.reserve(workload.prompt + workload.generation)
        return sequences

    def _feed(self, sequences: Sequence[CachedSequence], tokens: NDArray[np.int32]) -> None:
        """Appends tokens (S, T), sequence after sequence: submits `batch` tokens at once and computes `ubatch` of them.

        Logits are computed for the last token of each sequence and, as in llama-bench, of each submission.
        """
        count = tokens.shape[1]
        total = tokens.size
        for first in range(0, total, self._submitted):
            last = min(first + self._submitted, total)
            for start in range(first, last, self.model.batch):
                stop = min(start + self.model.batch, last)
                pieces = []
                for index in range(start // count, -(-stop // count)):
                    begin, end = max(start - index * count, 0), min(stop - index * count, count)
                    wanted: Wanted = (
                        "last" if end == count or (stop == last and index * count + end == last) else "none"
                    )
                    pieces.append((sequences[index], tokens[index, begin:end], wanted))
                for _ in self.model.forward(pieces).blocks():
                    pass  # the logits are computed but not copied

    def _draw(self, sequences: int, count: int) -> NDArray[np.int32]:
        return self._random.integers(0, self.model.config.vocab, (sequences, count), dtype=np.int32)
