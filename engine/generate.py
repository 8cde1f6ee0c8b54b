"""Text generation: one loop that samples for all requests of a scheduler, and a front of it for a single user."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lltool.engine.grammar.matcher import Matcher
from lltool.engine.inputs import token_ids
from lltool.engine.logits import Logits
from lltool.engine.request import Limits, Request, StopStrings, Timings, Token
from lltool.engine.sampling import Mask, Sampler, sample_rows
from lltool.engine.scheduler import Scheduler, Taken
from lltool.engine.state_file import StateFile, save_state
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.model import Model

__all__ = [
    "Dialogue",
    "Generation",
    "Step",
    "StopStrings",
    "Timings",
    "Token",
    "generate",
    "generate_all",
    "generate_step",
]


@dataclass
class Step:
    """A record of a batch: each request that had tokens in it with their number, and times by `perf_counter`.

    From `started` to `evaluated` the batch was computed up to the last layer; then came logits and sampling, in turns.
    `waiting` requests had no room in it. A batch that was never computed leaves `taken` empty.
    """

    started: float = 0.0
    evaluated: float = 0.0
    ended: float = 0.0
    sample_seconds: float = 0.0
    taken: list[tuple[Request, int]] = field(default_factory=list)
    waiting: int = 0


def generate_step(scheduler: Scheduler, step: Step | None = None) -> list[tuple[Request, Token]]:
    """Runs one batch of the scheduler's requests, and returns the tokens that they got; fills in `step`, if given.

    A request whose logits are damaged ends with the reason "error", and so does one whose own code raises something
    else, which is passed on; the other requests are not affected.
    """
    found: list[tuple[Request, Token]] = []
    for task in (*scheduler.running, *scheduler.waiting):
        assert isinstance(task, Request)
        task.resume()
    if step is None:
        scheduler.step(lambda logits, taken: _sample(scheduler.model, logits, taken, found))
        return found

    def read(logits: Logits, taken: Sequence[Taken]) -> None:
        step.evaluated, step.waiting = perf_counter(), len(scheduler.waiting)
        step.taken = [(each.task, each.count) for each in taken if isinstance(each.task, Request)]
        _sample(scheduler.model, logits, taken, found, step)

    step.started = perf_counter()
    scheduler.step(read)
    step.ended = perf_counter()
    return found


def _sample(
    model: "Model",
    logits: Logits,
    taken: Sequence[Taken],
    found: list[tuple[Request, Token]],
    step: Step | None = None,
) -> None:
    rows: list[tuple[Request, int]] = []  # each row's request, and the index in its text of the token that it follows
    failed: BaseException | None = None
    for each in taken:
        assert isinstance(each.task, Request)
        rows += [(each.task, index) for index in each.rows.tolist()]
        if not each.rows.size and each.task.evaluated == len(each.task.ids):
            each.task.note_evaluated()  # nothing is wanted of it but to be read
    for start, block in logits.blocks():
        part = rows[start : start + len(block)]
        last = [place for place, (request, index) in enumerate(part) if index == len(request.ids) - 1]
        if len(last) < len(part):
            _give_prompt_rows(part, block)
            part, block = [part[place] for place in last], block[last]
        for request, _ in part:
            request.note_evaluated()
        if ended := [place for place, (request, _) in enumerate(part) if request.is_over]:  # wanted no token
            block = np.delete(block, ended, axis=0)
        batch = [request for request, _ in part if not request.is_over]
        if not batch:
            continue
        begun = perf_counter()
        for request, row, choice in zip(batch, block, _choose(model, batch, block), strict=True):
            if isinstance(choice, InputError):
                request.end("error", str(choice))
                continue
            try:
                found.append((request, request.take_choice(choice, row)))
                while (token := request.take_forced()) is not None:
                    found.append((request, token))
            except KeyboardInterrupt:
                raise
            except InputError as error:
                request.end("error", str(error))
            except BaseException as error:
                request.end("error", repr(error))
                failed = failed or error
        if step is not None:
            step.sample_seconds += perf_counter() - begun
    if failed:
        raise failed


def _choose(model: "Model", batch: Sequence[Request], block: NDArray[np.float32]) -> list[int | InputError | None]:
    """What `sample_rows` chooses for each request from its row of the block (n, V), or why its constraint has failed.

    A token that is forced takes no random number, so that it makes no difference whether it had a row. The likeliest
    token of all is the likeliest of those allowed if it is one of them, which is cheaper to ask than the whole mask.
    """
    choices: list[int | InputError | None] = [request.forced for request in batch]
    left = [place for place, choice in enumerate(choices) if choice is None]
    free = [place for place in left if batch[place].matcher is not None and batch[place].sampler.takes_likeliest]
    for place, choice in zip(free, _sample_places(model, batch, block, dict.fromkeys(free)), strict=True):
        try:
            choices[place] = choice if choice is not None and batch[place].allows(choice) else None
        except InputError as error:
            choices[place] = error
    masks: dict[int, Mask | None] = {}
    for place in left:
        if choices[place] is None:
            try:
                masks[place] = batch[place].allowed
            except InputError as error:
                choices[place] = error
    for place, choice in zip(masks, _sample_places(model, batch, block, masks), strict=True):
        choices[place] = choice
    return choices


def _sample_places(
    model: "Model", batch: Sequence[Request], block: NDArray[np.float32], masks: Mapping[int, Mask | None]
) -> list[int | None]:
    """What `sample_rows` chooses at the places that have a mask."""
    if not masks:
        return []
    places = list(masks)
    return sample_rows(
        block if len(places) == len(batch) else block[places],
        [batch[place].sampler for place in places],
        texts=[batch[place].ids for place in places],
        masks=list(masks.values()),
        team=model.setup.threads.batch,
        poll=model.setup.threads.poll,
    )


def _give_prompt_rows(part: Sequence[tuple[Request, int]], block: NDArray[np.float32]) -> None:
    """Gives each request its rows of a block (n, V) that are within its prompt."""
    for request in dict.fromkeys(request for request, _ in part):
        places = [
            place for place, (owner, index) in enumerate(part) if owner is request and index < len(request.ids) - 1
        ]
        if places:
            request.read_prompt(part[places[0]][1], block[places])


class Dialogue:
    """Tokens in a model's cache, of which a new prompt reuses the common prefix. One thread at a time may use it."""

    def __init__(self, model: "Model") -> None:
        self.model = model
        self._scheduler = Scheduler(model, keep=1)
        self._request: Request | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens that are in the cache."""
        request = self._request
        if request is not None and request.sequence is not None:
            return [int(id) for id in request.ids[: request.evaluated]]
        return [int(id) for kept in self._scheduler.kept for id in kept]

    def begin(self, request: Request) -> None:
        """Makes this the request that is answered; one that is not over is cancelled."""
        self.cancel()
        self._request = request
        self._scheduler.submit(request)

    def cancel(self) -> None:
        if self._request is not None and not self._request.is_over:
            self._request.end("cancelled", "another prompt was given")
            self._scheduler.cancel(self._request)

    def step(self) -> list[tuple[Request, Token]]:
        """Runs a batch of the request, a part of its prompt or a token."""
        return generate_step(self._scheduler)

    def restore(self, path: Path) -> int:
        """Reads a text with its state, for prompts that begin with it; returns its number of tokens.

        Raises InputError for a file that does not fit the model, and OSError as `open` does.
        """
        with StateFile(path, self.model) as file:
            self._scheduler.keep_text(file.ids, file.claim, file.fill)
            return len(file.ids)

    def save(self, path: Path) -> int:
        """Writes the text in the cache with its state; returns its number of tokens. Raises InputError if it cannot."""
        request = self._request
        if request is not None and request.sequence is not None:
            ids, sequence = request.ids[: request.evaluated], request.sequence
        else:
            kept = self._scheduler.kept
            found = self._scheduler.kept_text(kept[-1]) if kept else None
            if found is None:
                raise InputError(f"{path}: there is no text in the cache to save")
            ids, sequence = found
        save_state(path, self.model, ids, sequence)
        return len(ids)

    def free(self) -> None:
        """Returns the pages to the cache; the dialogue is then empty and can be used again."""
        self._request = None
        self._scheduler.free()


@dataclass
class Generation(Iterator[Token]):
    """An iterator over generated tokens. With the last token, `reason` and `detail` say why the generation ended.

    `reason` is "stop" for an end-of-generation token or a stop string, and "length" for `max_tokens` or a full context.
    With `keep`, a full context does not end it (see `Limits`): `dropped` tokens then were dropped, after `kept` ones.
    The dialogue keeps its tokens for the next generation, unless `owns_dialogue` is set: it is then freed when this
    generation ends, raises or is garbage-collected.
    """

    dialogue: Dialogue
    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    matcher: Matcher | None = None
    clock: Callable[[], float] = perf_counter
    timings: Timings = field(default_factory=Timings)
    owns_dialogue: bool = False
    keep: int | None = None
    signs: Mapping[int, str] = field(default_factory=dict)  # what control tokens give as text

    def __post_init__(self) -> None:
        self._limits = Limits(self.max_tokens, self.stop, self.keep)
        self._ids = token_ids(self.prompt, self.dialogue.model.config.vocab)
        self._request: Request | None = None
        self._found: deque[Token] = deque()  # of the last step
        self._is_closed = False

    @property
    def reason(self) -> str:
        return self._request.reason if self._request and not self._found else ""

    @property
    def detail(self) -> str:
        return self._request.detail if self._request and not self._found else ""

    @property
    def dropped(self) -> int:
        return self._request.dropped if self._request else 0

    @property
    def kept(self) -> int:
        return self._request.kept if self._request else 0

    def __next__(self) -> Token:
        if self._is_closed:
            raise StopIteration
        continues = False
        try:
            token = self._next()
            continues = not self.reason
            return token
        finally:
            if not continues:
                self.close()

    def close(self) -> None:
        """Ends the generation, finished or not. If it owns its dialogue, the dialogue's pages go back to the cache."""
        self._is_closed = True
        if self.owns_dialogue:
            self.dialogue.free()

    def _next(self) -> Token:
        if self._request is None:
            self._request = self._begin()
        request, found = self._request, self._found
        while not (found or request.is_over):
            found.extend(token for _, token in self.dialogue.step())
        if found:
            return found.popleft()
        if request.reason == "error":
            raise InputError(request.detail)
        raise StopIteration

    def _begin(self) -> Request:
        model = self.dialogue.model
        request = Request(
            self._ids,
            tokenizer=model.tokenizer,
            context=model.context,
            sampler=self.sampler,
            limits=self._limits,
            clock=self.clock,
            timings=self.timings,
            reserves_all=False,
            matcher=self.matcher,
            signs=self.signs,
        )
        self.dialogue.begin(request)
        return request


def generate(
    model: "Model",
    prompt: Sequence[int],
    *,
    sampler: Sampler,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    matcher: Matcher | None = None,
    signs: Mapping[int, str] = MappingProxyType({}),
) -> Generation:
    """Continues `prompt`; an empty one stands for the model's begin token. `matcher` constrains what is generated.

    `signs` are what control tokens give as text, by their ids.

    The generation ends when the model ends the text, at a stop string, at `max_tokens`, or when the context is full,
    and then returns its pages to the cache. Asking for the first token raises InputError if the prompt fills the
    context.
    """
    return Generation(Dialogue(model), prompt, sampler, max_tokens, stop, matcher, owns_dialogue=True, signs=signs)


def generate_all(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    *,
    samplers: Sequence[Sampler],
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    matchers: Sequence[Matcher | None] | None = None,
) -> list[str]:
    """The continuations of several prompts, prompt i with samplers[i] and matchers[i], which are all different.

    They advance together, as many as the cache has room for: without `max_tokens`, each needs room for a whole context.
    Raises InputError as `generate` does, and if the cache has no room for a prompt.
    """
    limits, scheduler = Limits(max_tokens, stop), Scheduler(model)
    requests = [
        Request(
            token_ids(prompt, model.config.vocab),
            tokenizer=model.tokenizer,
            context=model.context,
            sampler=sampler,
            limits=limits,
            matcher=matcher,
        )
        for prompt, sampler, matcher in zip(prompts, samplers, matchers or [None] * len(prompts), strict=True)
    ]
    texts = dict.fromkeys(requests, "")
    try:
        for request in requests:
            scheduler.submit(request)
        while not scheduler.is_idle:
            for request, token in generate_step(scheduler):
                texts[request] += token.text
    finally:
        scheduler.free()
    for request in requests:
        if request.reason == "error":
            raise InputError(request.detail)
    return list(texts.values())
