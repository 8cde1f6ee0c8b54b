"""Many requests on one model: each gets the tokens that it gets alone, nobody starves, and nothing is lost."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import Batch
from lltool.engine.generate import Token, generate, generate_step
from lltool.engine.logits import Logits
from lltool.engine.model import Model, load_model
from lltool.engine.request import Limits, Request
from lltool.engine.sampling import Sampler
from lltool.engine.scheduler import Scheduler, Taken, Task
from lltool.gguf.errors import InputError
from tests.engine import tiny_gguf
from tests.engine.test_state import TEXT, assert_same, logits_anew, make_model

CONTEXT, BATCH = 256, 64
RANDOM = np.random.default_rng(9)
PROMPTS = [RANDOM.integers(0, 90, size).tolist() for size in (3, 200, 17, 1, 64, 130, 40, 5, 90, 12)]


class OwnError(Exception):
    pass


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = tiny_gguf.metadata() | tiny_gguf.vocabulary()
    return tiny_gguf.write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", keys, tiny_gguf.tensors())


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    """With 12 pages; results do not depend on what else is in a batch."""
    with load_model(path, threads=1, context=CONTEXT, sequences=3, batch=BATCH, deterministic=True) as model:
        yield model


def sampler_of(number: int) -> Sampler:
    return Sampler(temperature=number % 3, top_k=0, seed=number)


def request_of(model: Model, prompt: list[int], sampler: Sampler | None = None, tokens: int | None = 10) -> Request:
    return Request(
        prompt,
        tokenizer=model.tokenizer,
        context=model.context,
        sampler=sampler or Sampler(temperature=0),
        limits=Limits(tokens),
    )


def submit_all(model: Model, scheduler: Scheduler, prompts: list[list[int]], tokens: int | None = 10) -> list[Request]:
    requests = [request_of(model, prompt, sampler_of(i), tokens) for i, prompt in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request)
    return requests


def run(scheduler: Scheduler) -> list[list[tuple[Request, Token]]]:
    """The tokens of each step."""
    steps = []
    while not scheduler.is_idle:
        steps.append(generate_step(scheduler))
    return steps


def tokens_of(steps: list[list[tuple[Request, Token]]], request: Request) -> list[int]:
    return [token.id for step in steps for found, token in step if found is request]


def alone(model: Model, number: int, prompt: list[int], tokens: int | None = 10) -> list[int]:
    return [token.id for token in generate(model, prompt, sampler=sampler_of(number), max_tokens=tokens)]


def record(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """All batches that the model runs from now on."""
    batches: list[Batch] = []
    run = model.executor.run
    monkeypatch.setattr(model.executor, "run", lambda batch: (batches.append(batch), run(batch)))
    return batches


def test_each_request_gets_the_tokens_that_it_gets_alone(model: Model) -> None:
    expected = [alone(model, i, prompt) for i, prompt in enumerate(PROMPTS)]
    scheduler = Scheduler(model)
    requests = submit_all(model, scheduler, PROMPTS)
    steps = run(scheduler)
    assert [tokens_of(steps, request) for request in requests] == expected
    assert max(Counter(id(request) for request, _ in step).most_common(1)[0][1] for step in steps if step) == 1
    assert max(map(len, steps)) > 4  # they did run together
    assert {request.reason for request in requests} <= {"length", "stop"}
    assert all(
        request.timings.prompt_tokens + request.timings.cached == len(p)
        for request, p in zip(requests, PROMPTS, strict=True)
    )
    scheduler.free()
    assert model.free_pages == model.setup.pages


def test_what_begins_can_finish_and_the_others_wait_in_order(model: Model) -> None:
    scheduler = Scheduler(model, keep=0)
    requests = submit_all(model, scheduler, [[i] for i in range(8)], tokens=None)  # each may come to fill four pages
    began: list[Request] = []
    while not scheduler.is_idle:
        found = generate_step(scheduler)
        assert len({request for request, _ in found}) <= 3
        began += [request for request in requests if request not in began and request in dict(found)]
    assert began == requests
    assert all(request.reason for request in requests)
    with pytest.raises(InputError, match="257 tokens do not fit the context of 256"):
        scheduler.submit(Task([1] * 257, first=0, limit=257))
    with pytest.raises(InputError, match="token id 96, wanted one from 0 to 95"):
        scheduler.submit(Task([1, 96], first=1, limit=2))
    assert scheduler.is_idle


def test_a_long_prompt_stalls_nobody(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(model)
    short = submit_all(model, scheduler, [[i] for i in range(3)], tokens=20)
    generate_step(scheduler)
    long = request_of(model, PROMPTS[1], tokens=1)
    scheduler.submit(long)
    batches = record(model, monkeypatch)
    steps = []
    while not long.is_over:
        steps.append(generate_step(scheduler))
    assert [len(batch.tokens) for batch in batches] == [64, 64, 64, 20]  # 61 of the prompt and one of each other
    assert all({id(request) for request, _ in step} >= {id(request) for request in short} for step in steps)


def test_a_long_prompt_takes_less_of_a_batch_while_another_text_wants_its_next_token(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lltool.engine.scheduler._PROMPTS_BESIDE", 16)
    scheduler, batches = Scheduler(model), record(model, monkeypatch)
    submit_all(model, scheduler, [PROMPTS[0]], tokens=5)
    generate_step(scheduler)
    submit_all(model, scheduler, [PROMPTS[1]], tokens=1)
    run(scheduler)
    assert [len(batch.tokens) for batch in batches] == [3, 17, 17, 17, 17, 64, 64, 8]


def test_prompts_share_a_batch_equally(model: Model) -> None:
    scheduler = Scheduler(model)
    requests = submit_all(model, scheduler, [PROMPTS[1], PROMPTS[5], PROMPTS[7]], tokens=1)
    generate_step(scheduler)
    assert [request.evaluated for request in requests[:2]] == [30, 29]  # the third had all of its five
    assert requests[2].is_over


def test_more_tasks_than_a_batch_has_room_for_take_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_model(path, threads=1, context=CONTEXT, sequences=3, batch=3) as model:
        scheduler = Scheduler(model)
        requests = submit_all(model, scheduler, [[i] for i in range(3)], tokens=60)
        for request in requests:
            request.mask = np.array([0xFFFFFFFF, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32)  # without the end of the text
        steps = [generate_step(scheduler) for _ in range(20)]
        monkeypatch.setattr(type(model), "batch", 2)  # one less than there are tasks
        steps = [generate_step(scheduler) for _ in range(18)]
    counts = [len(tokens_of(steps, request)) for request in requests]
    assert sum(counts) == 36
    assert max(counts) - min(counts) <= 1
    gaps = [len(tokens_of(steps[i : i + 2], request)) for request in requests for i in range(17)]
    assert min(gaps) >= 1  # nobody waits for two steps


def test_a_common_prefix_is_evaluated_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = PROMPTS[5][:100]
    prompts = [[*stem, i, i + 1] for i in range(5)]
    expected = [alone(model, i, prompt, 5) for i, prompt in enumerate(prompts)]
    batches = record(model, monkeypatch)
    scheduler = Scheduler(model)
    requests = submit_all(model, scheduler, prompts, tokens=5)
    steps = run(scheduler)
    assert [tokens_of(steps, request) for request in requests] == expected
    assert sum(len(batch.tokens) for batch in batches) == 100 + sum(2 + len(tokens) - 1 for tokens in expected)
    assert [request.timings.cached for request in requests] == [0, 100, 100, 100, 100]

    again = request_of(model, [*prompts[0], *expected[0], 7], sampler_of(0), 1)  # goes on with a text that is over
    other = request_of(model, [*stem[:70], 50], sampler_of(0), 1)
    for request in (again, other):
        scheduler.submit(request)
    batches.clear()
    run(scheduler)
    assert (again.timings.cached, other.timings.cached) == (len(prompts[0]) + len(expected[0]) - 1, 70)
    assert sum(len(batch.tokens) for batch in batches) == 2 + 1


def test_kept_texts_go_when_their_pages_are_wanted(model: Model) -> None:
    scheduler = Scheduler(model)
    for size in (250, 240, 180):
        scheduler.submit(request_of(model, RANDOM.integers(0, 90, size).tolist(), tokens=1))
        run(scheduler)
    assert (model.free_pages, len(scheduler.kept)) == (12 - 4 - 4 - 3, 3)
    kept = scheduler.kept[1].tolist()
    request = request_of(model, kept[:185], tokens=None)  # its source is not the oldest, which has to go
    scheduler.submit(request)
    generate_step(scheduler)
    assert (request.timings.cached, len(scheduler.kept)) == (184, 2)
    run(scheduler)
    scheduler.free()
    assert model.free_pages == 12


def test_a_full_cache_of_others_is_an_error_and_not_a_hang(model: Model) -> None:
    held = model.new_sequence()
    model.evaluate(held, PROMPTS[1])
    others = [model.new_sequence() for _ in range(2)]
    for other in others:
        model.evaluate(other, PROMPTS[1])
    scheduler = Scheduler(model)
    scheduler.submit(request_of(model, [1, 2, 3], tokens=200))
    with pytest.raises(InputError, match="202 tokens take 4 pages of the cache, but 0 are free"):
        generate_step(scheduler)
    assert scheduler.is_idle
    for sequence in (held, *others):
        sequence.free()
    scheduler.submit(request_of(model, [1, 2, 3], tokens=2))
    assert sum(map(len, run(scheduler))) == 2


def test_a_cancelled_request_leaves_its_pages_and_its_text(model: Model) -> None:
    scheduler = Scheduler(model)
    requests = submit_all(model, scheduler, [PROMPTS[0], PROMPTS[5], *[[i] for i in range(8)]], tokens=None)
    for _ in range(5):
        generate_step(scheduler)
    waiting = next(request for request in requests if request in scheduler.waiting)
    for request in (requests[1], waiting):
        request.end("cancelled", "the client went away")
        scheduler.cancel(request)
    assert requests[1].sequence is None
    assert waiting not in scheduler.waiting
    steps = run(scheduler)
    assert tokens_of(steps, requests[1]) == tokens_of(steps, waiting) == []
    assert {request.reason for request in requests} <= {"length", "stop", "cancelled"}
    scheduler.free()
    assert model.free_pages == model.setup.pages


def test_the_error_of_one_request_is_its_own(model: Model) -> None:
    class Breaking(Sampler):
        def sample(self, logits: NDArray[np.float32], mask: object = None) -> int:
            raise OwnError("no")

    expected = [alone(model, i, prompt) for i, prompt in enumerate(PROMPTS)]
    scheduler = Scheduler(model)
    requests = submit_all(model, scheduler, PROMPTS[:3])
    broken, masked = request_of(model, [4, 5], Breaking()), request_of(model, [6, 7])
    masked.mask = np.zeros(3, np.uint32)
    scheduler.submit(broken)
    scheduler.submit(masked)
    with pytest.raises(OwnError):
        generate_step(scheduler)
    run(scheduler)
    assert (broken.reason, broken.detail) == ("error", "OwnError('no')")
    assert (masked.reason, masked.detail) == ("error", "the mask allows no token; wanted at least one")
    found = [[int(id) for id in request.ids[len(p) :]] for request, p in zip(requests, PROMPTS, strict=False)]
    assert found == [tokens[:-1] for tokens in expected[:3]]  # the last token is not appended


def test_interrupts_lose_no_token(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(model, 0, prompt) for prompt in PROMPTS]
    scheduler = Scheduler(model)
    requests = [request_of(model, prompt) for prompt in PROMPTS]
    for request in requests:
        scheduler.submit(request)
    dice, real = np.random.default_rng(3), Logits.blocks

    def blocks(logits: Logits) -> Any:
        if dice.random() < 0.4:
            raise KeyboardInterrupt  # when the batch has run, and nothing of it is read
        return real(logits)

    monkeypatch.setattr(Logits, "blocks", blocks)
    while not scheduler.is_idle:
        try:
            generate_step(scheduler)
        except KeyboardInterrupt:
            continue
    for request, tokens, prompt in zip(requests, expected, PROMPTS, strict=True):
        assert request.ids[len(prompt) :].tolist() == tokens[:-1]


def test_states_of_fixed_size_are_shared_from_a_checkpoint_on() -> None:
    model = make_model("cpu")
    scheduler = Scheduler(model)
    found: dict[Task, NDArray[np.float32]] = {}

    def read(logits: Logits, taken: list[Taken]) -> None:
        rows = iter(logits.all())
        for each in taken:
            if each.rows.size:
                found[each.task] = next(rows)
                each.task.is_over = True

    texts = [TEXT[:350], [*TEXT[:340], 5], [*TEXT[:310], 6, 7], TEXT[:20]]
    tasks = [Task(text, first=len(text) - 1, limit=len(text)) for text in texts]
    for task in tasks:
        scheduler.submit(task)
        while not scheduler.is_idle:
            scheduler.step(read)  # type: ignore[arg-type]
    for task, text in zip(tasks, texts, strict=True):
        assert_same(found[task], logits_anew(text))
    assert [task.shared for task in tasks] == [0, 300, 300, 0]  # the batches end at 100, 200, 300: a checkpoint at 300
