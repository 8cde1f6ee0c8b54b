"""A request to continue a text: it is given logits, and gives tokens; it never calls a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lltool.engine.grammar.matcher import Matcher
from lltool.engine.inputs import whole_number
from lltool.engine.sampling import Mask, Sampler, checked_choice, sample_rows
from lltool.engine.scheduler import Task
from lltool.engine.text.tokenizer import StreamDecoder
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Token:
    """A generated token and the text that it completes, which can be empty and can include text of earlier tokens."""

    id: int
    text: str


@dataclass
class Timings:
    """Times in seconds. `cached` tokens of the prompt were already in the cache and do not count in `prompt_tokens`.

    The time from the first token to the last is the sum of four: evaluating tokens (all that a benchmark times),
    sampling the next one, decoding it to text, and what the caller does with it, such as printing.
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
        """Prompt tokens evaluated per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_seconds(self) -> float:
        """The time from the first token to the last."""
        return self.evaluate_seconds + self.sample_seconds + self.text_seconds + self.output_seconds

    @property
    def decode_rate(self) -> float:
        """Tokens generated per second; the first one comes from evaluating the prompt and does not count."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds else 0.0

    @property
    def evaluate_rate(self) -> float:
        """`decode_rate` with the evaluation time only, comparable to a benchmark's figure at this depth."""
        return (self.tokens - 1) / self.evaluate_seconds if self.tokens > 1 and self.evaluate_seconds else 0.0


@dataclass(frozen=True)
class Limits:
    """When a generation ends: after `max_tokens`, or at one of the texts of `stop`, which does not come out itself.

    A full context ends it too, unless `keep` says how many tokens of the prompt stay then (-1: all): of those after
    them, the older half is dropped, and the others are evaluated anew, so that all is as if the text had begun so.
    """

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.keep is not None:
            whole_number("keep", self.keep, -1)
        if self.max_tokens is not None:
            whole_number("max_tokens", self.max_tokens, 0)
        texts = self.stop if isinstance(self.stop, Sequence) and not isinstance(self.stop, str) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"stop {self.stop!r}, wanted a list of texts")


class Request(Task):
    """The continuation of a prompt. `accept` takes the logits after the last of its tokens, and gives the next token.

    When it is over, `reason` and `detail` say why: "stop" for an end-of-generation token or a stop string, "length" for
    `max_tokens` or a full context, "cancelled", or "error". The scheduler keeps room in the cache for all of it, or,
    without `reserves_all`, only for the prompt: it may then find the cache full later. With `reads_prompt`, it shares
    no prefix, and `read_prompt` gets the logits within its prompt. Tokens of `ends` end it like the vocabulary's own.
    With a `matcher`, which belongs to it alone, the text follows a constraint: it ends where the constraint is
    complete, and tokens that must come next take no logits and no random number, unless `wants_rows`.
    `signs` are what control tokens give as text, by their ids; others give none.
    An empty prompt stands for the vocabulary's begin token. Raises InputError if there is none, and for a prompt that
    fills the context.
    """

    wants_rows = False
    """Whether logits are wanted before every generated token, also before those that a constraint forces."""

    def __init__(
        self,
        prompt: Sequence[int] | NDArray[np.int32],
        *,
        tokenizer: "Tokenizer",
        context: int,
        sampler: Sampler,
        limits: Limits,
        clock: Callable[[], float] = perf_counter,
        timings: Timings | None = None,
        reserves_all: bool = True,
        reads_prompt: bool = False,
        ends: frozenset[int] = frozenset(),
        matcher: Matcher | None = None,
        signs: Mapping[int, str] = MappingProxyType({}),
        scales: Sequence[float] | None = None,
    ) -> None:
        ids = list(prompt) or [id for id in [tokenizer.bos] if id is not None]
        if not ids:
            raise InputError("the prompt is empty and the model has no token that begins a text; give a prompt")
        if len(ids) >= context:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the context {context}; "
                "shorten the prompt or load the model with a larger context (-c)"
            )
        tokens = limits.max_tokens
        limit = context if tokens is None else min(context, len(ids) + max(0, tokens - 1))
        first = 0 if reads_prompt else len(ids) - (tokens != 0)
        super().__init__(ids, first=first, limit=limit, reserved=limit if reserves_all else len(ids), scales=scales)
        sampler.use(tokenizer)
        self.sampler = sampler
        self.mask: Mask | None = None  # of the tokens allowed next, for a text without a matcher
        self.matcher = matcher
        self._forced = [] if matcher is None else matcher.forced()  # tokens that come next without a choice
        self.timings = timings or Timings()
        self.reason = self.detail = ""
        self._prompt_tokens, self._context, self._limits = len(ids), context, limits
        self.tokenizer, self._held = tokenizer, StopStrings(limits.stop)
        self._decoder = StreamDecoder(tokenizer, signs=signs)
        self._ends = tokenizer.end_of_generation | ends
        self.dropped = 0  # tokens, to make room in the context
        self._clock, self._mark = clock, -1.0

    @property
    def prompt_tokens(self) -> int:
        return self._prompt_tokens

    def resume(self) -> None:
        """Notes that the work on it goes on: from here the model works, and before, the consumer of its tokens did."""
        if self._mark < 0:
            self._mark = self._clock()
        elif self.timings.tokens:
            self.timings.output_seconds += self._lap()

    def note_evaluated(self) -> None:
        """Notes that the logits after its last token have been computed, or that its whole prompt was read."""
        if self.timings.tokens:
            self.timings.evaluate_seconds += self._lap()
            return
        self.timings.cached, self.timings.prompt_tokens = self.shared, self._prompt_tokens - self.shared
        self.timings.prompt_seconds = self._lap()
        if self._limits.max_tokens == 0:
            self.end("length", "0 tokens were asked for")

    def read_prompt(self, start: int, logits: NDArray[np.float32]) -> None:
        """Is given the logits (n, V) after the prompt's tokens from index `start` on, with `reads_prompt`."""

    @property
    def allowed(self) -> Mask | None:
        """The tokens allowed next, None for all. Raises InputError if the constraint cannot be followed any further."""
        return self.mask if self.matcher is None else self.matcher.allowed()

    def allows(self, id: int) -> bool:
        """Whether the constraint allows what a sampler chose. Raises InputError as `allowed` does."""
        return id >= 0 and (self.matcher is None or self.matcher.allows(id))

    @property
    def forced(self) -> int | None:
        """The next token, if there is no choice."""
        return self._forced[0] if self._forced else None

    def accept(self, logits: NDArray[np.float32]) -> Token:
        """Samples the next token from logits (V,). Raises InputError if the largest allowed one is not finite."""
        self.resume()
        self.note_evaluated()
        if self.forced is not None:
            return self.take_choice(self.forced, logits)
        (choice,) = sample_rows(logits[None], [self.sampler], texts=[self.ids], masks=[self.allowed])
        return self.take_choice(choice, logits)

    def take_choice(self, choice: int | None, logits: NDArray[np.float32]) -> Token:
        """Takes what `sample_rows` has chosen from logits (V,). Raises InputError if it could not choose."""
        if choice is None:  # the sampler has a `sample` of its own
            mask = self.allowed
            choice = self.sampler.sample(logits) if mask is None else self.sampler.sample(logits, mask)
        return self.take(choice if choice >= 0 else checked_choice(choice, logits, self.allowed))

    def take_forced(self) -> Token | None:
        """Takes the next token if there is no choice, and no logits are wanted before it."""
        if self.is_over or not self._forced or self.wants_rows:
            return None
        return self.take(self._forced[0])

    def take(self, id: int) -> Token:
        """Appends a token that was sampled, unless it is the last; returns it with the text that it completes."""
        times, tokenizer, held = self.timings, self.tokenizer, self._held
        if times.tokens:
            times.sample_seconds += self._lap()
        else:
            times.first_token_seconds = times.prompt_seconds + self._lap()
        times.tokens += 1
        is_complete = self._follow(id)
        if id in self._ends:
            self.end("stop", f"the model ended the text with {tokenizer.tokens[id]}")
            return Token(id, held.flush(self._decoder.flush()))
        text = held.push(self._decoder.push(id))
        if held.found is not None:
            self.end("stop", f"the stop string {held.found!r}")
        elif is_complete:
            self.end("stop", "what the grammar describes is complete")
        elif times.tokens == self._limits.max_tokens:
            self.end("length", f"{times.tokens} tokens were asked for")
        elif len(self.ids) >= self._context and not self._shift():
            self.end("length", f"the context of {self._context} tokens is full")
        if self.is_over:
            return Token(id, text if held.found is not None else text + held.flush(self._decoder.flush()))
        self.append(id)
        self.first = len(self.ids) - 1  # of tokens that were forced, only the last is asked what follows
        times.text_seconds += self._lap()
        return Token(id, text)

    @property
    def kept(self) -> int:
        """How many tokens at the beginning of the text stay when the context is full."""
        keep = self._limits.keep or 0
        is_begun = self.ids[0] == self.tokenizer.bos and self.tokenizer.add_bos
        return self._prompt_tokens if keep < 0 else min(keep + is_begun, self._prompt_tokens)

    def _shift(self) -> bool:
        """Drops the older half of the tokens after those that are kept; returns whether it may and there were any."""
        count = (len(self.ids) - self.kept) // 2
        if self._limits.keep is None or not count:
            return False
        self.cut(self.kept, self.kept + count)
        self.dropped += count
        return True

    def _follow(self, id: int) -> bool:
        """Tells the constraint the next token; returns whether the text can only end after it."""
        if self.matcher is None or id in self._ends:
            return False
        self.matcher.accept(id)
        if self._forced:
            del self._forced[0]
        if self.matcher.is_complete:
            return True
        self._forced = self._forced or self.matcher.forced()
        return False

    def flush(self) -> str:
        """What is held back of the text, for a request that is ended from outside."""
        return self._held.flush(self._decoder.flush())

    def end(self, reason: str, detail: str) -> None:
        self.reason, self.detail, self.is_over = reason, detail, True

    def _lap(self) -> float:
        before, self._mark = self._mark, self._clock()
        return self._mark - before


class StopStrings:
    """Holds generated text back as long as it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Adds `text`; returns what is now certain: all before the first stop string, or all that cannot begin one."""
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
        """Adds `text` and returns all that is held back, for a generation that ends without a stop string."""
        out = self.push(text) + self._held
        self._held = ""
        return out


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
