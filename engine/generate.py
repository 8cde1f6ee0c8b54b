"""Generating text: evaluate the prompt, then sample, print, evaluate, one token at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from time import perf_counter
from typing import TYPE_CHECKING

from lltool.engine.sampling import Sampler
from lltool.engine.tokenizer import StreamDecoder
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lltool.engine.model import Model


@dataclass(frozen=True)
class Token:
    """A generated token and the text that is certain by now; it can be empty, and can end earlier tokens' text."""

    id: int
    text: str


@dataclass
class Timings:
    """Times in seconds. `cached` tokens of the prompt were in the cache already and are not in `prompt_tokens`.

    What happens from the first token to the last is itemized: evaluating tokens, which is all that a benchmark times,
    choosing the next, making text of it, and what the caller does with it, as printing.
    """

    cached: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    tokens: int = 0
    evaluate_seconds: float = 0.0
    sample_seconds: float = 0.0
    text_seconds: float = 0.0
    output_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt evaluated in a second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.evaluate_seconds + self.sample_seconds + self.text_seconds + self.output_seconds

    @property
    def decode_rate(self) -> float:
        """Tokens generated in a second; the first one comes out of the prompt's evaluation and does not count."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds else 0.0

    @property
    def evaluate_rate(self) -> float:
        """The same without what choosing and printing cost: a benchmark's figure at this depth."""
        return (self.tokens - 1) / self.evaluate_seconds if self.tokens > 1 and self.evaluate_seconds else 0.0


class Dialogue:
    """Tokens in a model's cache; each prompt is evaluated from where it differs from them."""

    def __init__(self, model: "Model") -> None:
        self.model = model
        self.ids: list[int] = []
        self._sequence = model.new_sequence()

    def reset(self, ids: Sequence[int]) -> tuple[int, "NDArray[np.float32]"]:
        """Makes `ids` the content; gives how many were there already and the logits (V,) behind the last one."""
        if not ids:
            raise InputError("the prompt is empty and the model has no token that begins a text; give a prompt")
        if len(ids) >= self.model.context:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the context {self.model.context}; "
                "shorten the prompt or load the model with a larger context (-c)"
            )
        pairs = zip(self.ids, ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._sequence.truncate(shared)
        del self.ids[shared:]
        logits = self.model.evaluate(self._sequence, ids[shared:])
        self.ids += ids[shared:]
        return shared, logits

    def append(self, id: int) -> "NDArray[np.float32]":
        """Adds one token; gives the logits (V,) behind it, a view that the next token's overwrite."""
        self._sequence.truncate(len(self.ids))  # an interrupt can leave a token that `ids` does not have
        logits = self.model.forward([(self._sequence, [id], "last")])
        self.ids.append(id)
        row: NDArray[np.float32] = logits.block(0, 1)[0]
        return row

    @property
    def is_full(self) -> bool:
        return len(self.ids) >= self.model.context

    def free(self) -> None:
        """Gives the cache's pages back; the dialogue is empty then and can be used again."""
        self._sequence.free()
        self.ids.clear()


@dataclass
class Generation(Iterator[Token]):
    """Generated tokens as they come; with the last one `reason` says why it ended and `detail` says it in words.

    `reason` is "stop" for an end-of-generation token or a stop string, and "length" for `max_tokens` or a full context.
    """

    dialogue: Dialogue
    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    clock: Callable[[], float] = perf_counter
    reason: str = ""
    detail: str = ""
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self._tokens = self._generate()

    def __next__(self) -> Token:
        return next(self._tokens)

    def _generate(self) -> Iterator[Token]:
        tokenizer, timings = self.dialogue.model.tokenizer, self.timings
        prompt = self.prompt or [id for id in [tokenizer.bos] if id is not None]
        mark = self.clock()

        def lap() -> float:
            nonlocal mark
            before, mark = mark, self.clock()
            return mark - before

        timings.cached, logits = self.dialogue.reset(prompt)
        timings.prompt_tokens = len(prompt) - timings.cached
        timings.prompt_seconds = lap()
        if self.max_tokens == 0:
            self._end("length", "0 tokens were asked for")
            return

        decoder, held = StreamDecoder(tokenizer), StopStrings(self.stop)
        id = self.sampler.sample(logits)
        timings.first_token_seconds = timings.prompt_seconds + lap()
        while True:
            timings.tokens += 1
            if id in tokenizer.end_of_generation:
                self._end("stop", f"the model ended the text with {tokenizer.tokens[id]}")
                yield Token(id, held.flush(decoder.flush()))
                return
            text = held.push(decoder.push(id))
            if held.found is not None:
                self._end("stop", f"the stop string {held.found!r}")
            elif timings.tokens == self.max_tokens:
                self._end("length", f"{self.max_tokens} tokens were asked for")
            elif self.dialogue.is_full:
                self._end("length", f"the context of {self.dialogue.model.context} tokens is full")
            if self.reason:
                yield Token(id, text if held.found is not None else text + held.flush(decoder.flush()))
                return
            timings.text_seconds += lap()
            yield Token(id, text)
            timings.output_seconds += lap()
            logits = self.dialogue.append(id)
            timings.evaluate_seconds += lap()
            id = self.sampler.sample(logits)
            timings.sample_seconds += lap()

    def _end(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


class StopStrings:
    """Text on its way out, held back while it can be the start of a string that ends it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What can go out now: all before the first stop string, or all that starts none."""
        self._held += text
        starts = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if starts:
            position, self.found = min(starts)
            out, self._held = self._held[:position], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self, text: str) -> str:
        """The rest, when the text ends another way."""
        out = self.push(text) + self._held
        self._held = ""
        return out


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def generate(
    model: "Model",
    prompt: Sequence[int],
    *,
    sampler: Sampler,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
) -> Generation:
    """Continues `prompt`, or the model's begin token when it is empty.

    Ends when the model ends the text, at a stop string, at `max_tokens` or when the context is full. Raises InputError,
    when the first token is asked for, for a prompt that fills the context.
    """
    return Generation(Dialogue(model), prompt, sampler, max_tokens, stop)
