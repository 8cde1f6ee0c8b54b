"""A model under eight threads that generate, evaluate, fork, abandon and are interrupted at any point."""

import ctypes
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread, get_ident

import numpy as np
from numpy.typing import NDArray

from lltool.engine.generate import Token, generate
from lltool.engine.model import Model
from lltool.engine.sampling import Sampler
from lltool.gguf.errors import InputError

TOKENS = 6  # that are generated
GREEDY = Sampler(temperature=0)


class OwnError(Exception):
    """What a consumer of tokens raises."""


@dataclass
class Stress:
    """Each of `prompts` has one right answer: that of the model alone. The model is to be deterministic."""

    model: Model
    prompts: Sequence[list[int]]
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _armed: set[int] = field(default_factory=set)  # numbers of the threads that may be interrupted
    by_thread: Counter[int] = field(default_factory=Counter)
    resident: list[int] = field(default_factory=list)  # bytes, now and then

    def __post_init__(self) -> None:
        self._logits = [self._evaluate(prompt) for prompt in self.prompts]
        self._texts = [[token.id for token in self._generate(prompt)] for prompt in self.prompts]

    def run(self, seconds: float, threads: int = 8, pause: float = 0.02) -> None:
        """Works in the calling thread, the main one, and in others; interrupts one of them every `pause` seconds."""
        end = time.monotonic() + seconds
        stop = Event()
        others = [Thread(target=lambda n=n: self._work(n, stop)) for n in range(1, threads)]
        for thread in others:
            thread.start()
        injector = Thread(target=self._interrupt, args=(others, stop, pause))
        injector.start()
        try:
            with self._alarms(pause * 3):
                self._work(0, stop, end)
        finally:
            stop.set()
            injector.join()
            for thread in others:
                thread.join(60)
        self.wrong += [f"thread {n} hangs" for n, thread in enumerate(others, 1) if thread.is_alive()]
        self.wrong += [f"thread {n} did nothing" for n in range(threads) if not self.by_thread[n]]

    def _work(self, number: int, stop: Event, end: float = float("inf")) -> None:
        dice = random.Random(get_ident() + time.monotonic_ns())
        while not stop.is_set() and time.monotonic() < end:
            try:
                self._do(number, dice)
            except KeyboardInterrupt:
                self.done["interrupted"] += 1
            if number == 0 and self.by_thread[0] % 50 == 0:
                self.resident.append(resident_bytes())

    def _do(self, number: int, dice: random.Random) -> None:
        jobs: list[Callable[[int, random.Random], bool]] = [
            self._generates, self._evaluates, self._forks, self._abandons, self._raises, self._reads_blocks, self._errs,
        ]  # fmt: skip
        job = dice.choice(jobs)
        self._armed.add(number)
        try:
            if not job(dice.randrange(len(self.prompts)), dice):
                self.wrong.append(f"{job.__name__}: another answer")
        except (InputError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self.wrong.append(f"{job.__name__}: {error!r}")
        self.done[job.__name__] += 1
        self.by_thread[number] += 1
        self._disarm(number)
        time.sleep(0)  # an interrupt that is on its way comes here at the latest

    def _disarm(self, number: int) -> bool:
        """Whether the thread was in a job that may be interrupted, once."""
        try:
            self._armed.remove(number)
        except KeyError:
            return False
        return True

    def _interrupt(self, threads: Sequence[Thread], stop: Event, pause: float) -> None:
        while not stop.wait(pause):
            number = random.randrange(len(threads))
            ident = threads[number].ident
            if ident is not None and self._disarm(number + 1):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))

    @contextmanager
    def _alarms(self, pause: float) -> Iterator[None]:
        """Ctrl-C for the main thread, again and again."""

        def interrupt(*_: object) -> None:
            if self._disarm(0):
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, pause, pause)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _generate(self, prompt: list[int]) -> Iterator[Token]:
        return generate(self.model, prompt, sampler=GREEDY, max_tokens=TOKENS)

    def _evaluate(self, prompt: list[int]) -> NDArray[np.float32]:
        return self.model.evaluate(self.model.new_sequence(), prompt)  # which is dropped, not freed

    def _generates(self, i: int, dice: random.Random) -> bool:
        return [token.id for token in self._generate(self.prompts[i])] == self._texts[i]

    def _evaluates(self, i: int, dice: random.Random) -> bool:
        sequence = self.model.new_sequence()
        logits = self.model.evaluate(sequence, self.prompts[i])
        if dice.random() < 0.5:
            sequence.free()
        return np.array_equal(logits, self._logits[i])

    def _forks(self, i: int, dice: random.Random) -> bool:
        prompt = self.prompts[i]
        trunk, cut = self.model.new_sequence(), dice.randrange(1, len(prompt))
        self.model.evaluate(trunk, prompt[:cut])
        branch = trunk.fork()
        found = [self.model.evaluate(each, prompt[cut:]) for each in (branch, trunk)]
        return all(np.array_equal(logits, self._logits[i]) for logits in found)

    def _abandons(self, i: int, dice: random.Random) -> bool:
        found = [token.id for token, _ in zip(self._generate(self.prompts[i]), range(3), strict=False)]
        return found == self._texts[i][: len(found)]

    def _raises(self, i: int, dice: random.Random) -> bool:
        try:
            for _ in self._generate(self.prompts[i]):
                raise OwnError
        except OwnError:
            return True
        return False

    def _reads_blocks(self, i: int, dice: random.Random) -> bool:
        sequence = self.model.new_sequence()
        self.model.evaluate(sequence, self.prompts[i][:-1])
        with self.model.turn():
            logits = self.model.forward([(sequence, self.prompts[i][-1:], "last")])
            row = logits.block(0, 1)[0]
            return np.array_equal(row, self._logits[i])

    def _errs(self, i: int, dice: random.Random) -> bool:
        sequence = self.model.new_sequence()
        try:
            self.model.evaluate(sequence, [*self.prompts[i], -1])
        except InputError:
            return sequence.length == 0
        return False


def resident_bytes() -> int:
    """The process's own memory, without pages of mapped files, which come and go as the system likes."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * 4096
