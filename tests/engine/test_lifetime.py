"""Pages come back however a sequence ends, and a model's memory, file and threads when it is closed."""

import copy
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.generate import Dialogue, Generation, generate
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.gguf.errors import InputError
from tests.engine import tiny_gguf

GREEDY = Sampler(temperature=0)
TEXT = [i % 90 for i in range(100)]  # two pages


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = tiny_gguf.metadata() | tiny_gguf.vocabulary()
    return tiny_gguf.write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", keys, tiny_gguf.tensors())


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    """With room for two sequences of two pages."""
    with load_model(path, threads=2, context=128, sequences=2) as model:
        yield model


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class OwnError(Exception):
    pass


class Breaking(Sampler):
    def sample(self, logits: object) -> int:
        raise OwnError


def ends(generation: Generation) -> None:
    assert len(list(generation)) == 5


def ends_at_its_last_token(generation: Generation) -> None:
    while not generation.reason:
        next(generation)


def is_closed(generation: Generation) -> None:
    next(generation)
    generation.close()
    with pytest.raises(StopIteration):
        next(generation)


def raises(generation: Generation) -> None:
    generation.dialogue.step = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        list(generation)


def is_interrupted(generation: Generation) -> None:
    next(generation)

    def interrupt() -> Any:
        raise KeyboardInterrupt

    generation.dialogue.step = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(generation)


@pytest.mark.parametrize("use", [ends, ends_at_its_last_token, is_closed, raises, is_interrupted])
@pytest.mark.usefixtures("no_collector")
def test_a_generation_that_is_over_holds_no_pages(model: Model, use: Callable[[Generation], None]) -> None:
    kept = []
    for _ in range(5):
        generation = generate(model, TEXT, sampler=GREEDY, max_tokens=5)
        use(generation)
        kept.append(generation)
        assert model.free_pages == 4


@pytest.mark.usefixtures("no_collector")
def test_a_generation_that_is_abandoned_holds_no_pages(model: Model) -> None:
    for _ in range(5):
        generation = generate(model, TEXT, sampler=GREEDY)
        next(generation)
        assert model.free_pages == 2
        del generation
        assert model.free_pages == 4
        for _ in generate(model, TEXT, sampler=GREEDY):
            break
        assert model.free_pages == 4
        with pytest.raises(OwnError):
            next(generate(model, TEXT, sampler=Breaking()))
        assert model.free_pages == 4


def test_a_dialogue_keeps_its_tokens_for_the_next_generation(model: Model) -> None:
    dialogue = Dialogue(model)
    ends(Generation(dialogue, TEXT, GREEDY, 5))
    assert model.free_pages == 2
    assert dialogue.ids[:100] == TEXT
    dialogue.free()
    assert model.free_pages == 4


@pytest.mark.usefixtures("no_collector")
def test_sequences_that_are_dropped_give_their_pages_back(model: Model) -> None:
    for _ in range(5):
        trunk = model.new_sequence()
        model.evaluate(trunk, TEXT)
        branch = trunk.fork()
        del trunk
        assert model.free_pages == 2
        model.evaluate(branch, [1])  # in the last page, which is nobody else's by now
        assert model.free_pages == 2
        del branch
    assert model.free_pages == 4
    held: list[Any] = [model.new_sequence()]
    held.append(held)
    model.evaluate(held[0], TEXT)
    del held
    assert model.free_pages == 2
    gc.collect()
    assert model.free_pages == 4


def test_sequences_dropped_in_other_threads_give_their_pages_back(model: Model) -> None:
    def work() -> None:
        for _ in range(20):
            model.evaluate(model.new_sequence(), TEXT[:5])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.free_pages == 4


def test_pages_that_an_interrupt_lost_come_back_when_they_are_wanted(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = model.new_sequence()
    model.evaluate(sequence, TEXT)
    pool = sequence.pool

    def interrupt(pages: list[int]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool.pages, "release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sequence.truncate(10)  # cut, but a page was not given back
    assert (sequence.length, len(sequence.pages), len(pool.free)) == (10, 1, 2)
    other = model.new_sequence()
    model.evaluate(other, TEXT[:128])
    model.evaluate(sequence, TEXT)
    assert model.free_pages == 0


def threads(wanted: int | None = None) -> int:
    """Threads of this process; the system may list one for a moment after it has ended, so it waits for `wanted`."""
    deadline = time.monotonic() + 5
    while (found := len(os.listdir("/proc/self/task"))) != wanted and wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    return found


def mapped(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(name)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def join_prefetch() -> None:
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_closing_frees_file_cache_and_threads_at_once(path: Path) -> None:
    copied = path.with_name("closed.gguf")
    copied.write_bytes(path.read_bytes())
    join_prefetch()
    before = threads(), descriptors()
    model = load_model(copied, threads=3, context=128, sequences=2)
    sequence, executor = model.new_sequence(), weakref.ref(model.executor)
    logits = model.forward([(sequence, TEXT, "last")])
    assert model.tokenizer.decode([0]) == "!"
    join_prefetch()
    assert threads(before[0] + 2) == before[0] + 2
    generation = generate(model, [1], sampler=GREEDY)
    next(generation)
    model.close()
    join_prefetch()
    assert executor() is None
    assert (threads(before[0]), descriptors(), mapped("closed.gguf")) == (*before, 0)
    for use in (lambda: logits.block(0, 1), lambda: next(generation), lambda: model.evaluate(sequence, [1])):
        with pytest.raises(InputError, match=r"closed\.gguf is closed; load it again"):
            use()
    sequence.free()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_data_that_is_held_stays_when_the_model_is_closed(path: Path) -> None:
    copied = path.with_name("held.gguf")
    copied.write_bytes(path.read_bytes())
    with load_model(copied, threads=1) as model:
        data = model.file.tensor("blk.0.attn_q.weight").data()
        executor = weakref.ref(model.executor)
    join_prefetch()
    assert executor() is None
    np.testing.assert_array_equal(data.view(np.float32), tiny_gguf.tensors()["blk.0.attn_q.weight"])
    assert mapped("held.gguf") > 0
    del data
    assert mapped("held.gguf") == 0


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_collector")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_loading_and_closing_leaves_nothing_behind(path: Path, count: int) -> None:
    def use(wanted: int | None = None) -> tuple[int, int, int]:
        with load_model(path, threads=2, context=512) as model:
            list(generate(model, TEXT, sampler=GREEDY, max_tokens=3))
        join_prefetch()
        return threads(wanted), descriptors(), mapped("tiny.gguf")

    idle = threads()
    before = [use(idle) for _ in range(5)][-1]
    resident = resident_bytes()
    for _ in range(count):
        assert use(before[0]) == before
    assert resident_bytes() - resident < 4 << 20  # a file alone is more than the thousandth of it


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


USES: dict[str, Callable[[Model], object]] = {
    "new_sequence": lambda model: model.new_sequence(),
    "forward": lambda model: model.forward([]),
    "evaluate": lambda model: model.evaluate(None, [1]),  # type: ignore[arg-type]
    "tokenizer": lambda model: model.tokenizer,
    "executor": lambda model: model.executor,
    "program": lambda model: model.program,
    "free_pages": lambda model: model.free_pages,
    "generate": lambda model: generate(model, [1], sampler=GREEDY),
    "dialogue": lambda model: Dialogue(model),
}


@pytest.mark.parametrize("name", USES)
def test_a_closed_model_says_so(path: Path, name: str) -> None:
    model = load_model(path, threads=1)
    model.tokenizer  # noqa: B018 (one that is made already is not given out either)
    model.close()
    with pytest.raises(InputError, match=r"tiny\.gguf is closed; load it again"):
        USES[name](model)
    model.close()


def test_closing_waits_for_the_turn_of_another_thread(path: Path) -> None:
    model = load_model(path, threads=1)
    order: list[str] = []
    with model.turn():
        closing = threading.Thread(target=lambda: (model.close(), order.append("closed")))
        closing.start()
        model.evaluate(model.new_sequence(), TEXT)
        order.append("evaluated")
    closing.join()
    assert order == ["evaluated", "closed"]


@pytest.mark.parametrize("copy_it", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_model_is_not_copied(model: Model, copy_it: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled; load it again instead"):
        copy_it(model)
    sequence = model.new_sequence()
    with pytest.raises(TypeError, match=r"cannot be copied or pickled; fork\(\) makes another one"):
        copy_it(sequence)
