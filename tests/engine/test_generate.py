"""Generation on a model made of rules: what comes out, why it ends, and what is evaluated again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lltool.engine.cpu.threads import Threads
from lltool.engine.generate import Dialogue, Generation, StopStrings, generate
from lltool.engine.request import Limits, Request
from lltool.engine.sampling import Sampler
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import ValueType, array, string, u32
from lltool.quant.convert.sentencepiece_model import TokenType

END = 26
LETTERS = [chr(ord("a") + i) for i in range(26)]
GREEDY = Sampler(temperature=0)


def make_tokenizer(*, bos: int | None = None) -> Tokenizer:
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, [*LETTERS, "<|im_end|>"]),
        "tokenizer.ggml.token_type": array(
            ValueType.INT32, np.array([TokenType.NORMAL] * 26 + [TokenType.CONTROL], np.int32)
        ),
        "tokenizer.ggml.merges": array(ValueType.STRING, []),
    }
    return Tokenizer.from_gguf(metadata | ({} if bos is None else {"tokenizer.ggml.bos_token_id": u32(bos)}))


@dataclass
class FakeSequence:
    scales: tuple[float, ...] = ()
    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.ids)

    def pages_to_take(self, length: int) -> int:
        return 0

    def truncate(self, length: int) -> None:
        assert length <= len(self.ids)
        del self.ids[length:]

    def free(self) -> None:
        self.truncate(0)


@dataclass
class FakeLogits:
    rows: NDArray[np.float32]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        yield 0, self.rows


@dataclass
class Alphabet:
    """Says the next letter of the alphabet, and after `last` that the text ends."""

    tokenizer: Tokenizer = field(default_factory=make_tokenizer)
    context: int = 64
    last: int = 25
    batch: int = 512
    evaluated: list[list[int]] = field(default_factory=list)
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(vocab=27, is_causal=True))
    setup: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(threads=Threads.of(1)))
    free_pages: int = 100
    adapters: tuple[()] = ()
    interrupts: bool = False  # the next call, after the tokens were evaluated

    def new_sequence(self, scales: tuple[float, ...] = ()) -> FakeSequence:
        assert not scales, "it has no adapters"
        return FakeSequence()

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, pieces: list[tuple[FakeSequence, NDArray[np.int32], NDArray[np.int64]]]) -> FakeLogits:
        ((sequence, tokens, rows),) = pieces
        ids = tokens.tolist()
        assert ids
        assert len(sequence.ids) + len(ids) <= self.context
        sequence.ids += ids
        self.evaluated.append(ids)
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
        logits = np.zeros((len(rows), 27), np.float32)
        for row, id in zip(logits, tokens[rows], strict=True):
            row[END if id >= self.last else id + 1] = 9
        return FakeLogits(logits)


def run(model: Alphabet, text: str, **options: Any) -> tuple[str, Generation]:
    generation = generate(cast(Any, model), model.tokenizer.encode(text), sampler=GREEDY, **options)
    return "".join(token.text for token in generation), generation


def test_generates_until_the_model_ends_the_text() -> None:
    text, generation = run(Alphabet(last=6), "abc")
    assert text == "defg"
    assert (generation.reason, generation.detail) == ("stop", "the model ended the text with <|im_end|>")


def test_generates_at_most_max_tokens() -> None:
    for count in (0, 1, 3):
        text, generation = run(Alphabet(), "abc", max_tokens=count)
        assert text == "defg"[:count]
        assert (generation.reason, generation.detail) == ("length", f"{count} tokens were asked for")


def test_ends_at_the_first_stop_string() -> None:
    text, generation = run(Alphabet(), "ab", stop=["xyz", "fgh", "gh"])
    assert text == "cde"
    assert (generation.reason, generation.detail) == ("stop", "the stop string 'fgh'")
    assert run(Alphabet(last=6), "ab", stop=["fgz"])[0] == "cdefg"  # what was held back comes out at the end
    assert run(Alphabet(), "ab", stop=["eg"], max_tokens=3)[0] == "cde"


def test_ends_when_the_context_is_full() -> None:
    text, generation = run(Alphabet(context=8), "abc")
    assert text == "defghi"  # five tokens behind the prompt fill the context, the logits of the last give one more
    assert (generation.reason, generation.detail) == ("length", "the context of 8 tokens is full")


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(InputError, match="the prompt has 8 tokens and the context 8; shorten"):
        run(Alphabet(context=8), "abcdefgh")


def test_an_empty_prompt_begins_with_the_begin_token_if_there_is_one() -> None:
    assert run(Alphabet(make_tokenizer(bos=3), last=6), "")[0] == "efg"
    with pytest.raises(InputError, match="the prompt is empty and the model has no token that begins a text"):
        run(Alphabet(), "")


def test_each_token_is_evaluated_once() -> None:
    model = Alphabet()
    _, generation = run(model, "abc", max_tokens=3)
    assert model.evaluated == [[0, 1, 2], [3], [4]]
    assert (generation.timings.prompt_tokens, generation.timings.tokens) == (3, 3)


def test_timings_follow_the_clock() -> None:
    # start, prompt, first token; then text, output, evaluation and choice of the second token, and of the third
    ticks = iter([0.0, 2.0, 2.5, 2.625, 3.0, 4.0, 4.25, 4.375, 4.5, 6.25, 6.5])
    model = Alphabet()
    generation = Generation(Dialogue(cast(Any, model)), [0, 1, 2, 3], GREEDY, 3, clock=lambda: next(ticks))
    assert [token.id for token in generation] == [4, 5, 6]
    times = generation.timings
    assert (times.prompt_seconds, times.prompt_rate) == (2.0, 2.0)
    assert times.first_token_seconds == 2.5
    assert (times.text_seconds, times.output_seconds) == (0.25, 0.5)
    assert (times.evaluate_seconds, times.sample_seconds) == (2.75, 0.5)
    assert (times.decode_seconds, times.decode_rate) == (4.0, 0.5)  # 2.5 to 6.5
    assert times.evaluate_rate == 2 / 2.75


def test_a_dialogue_evaluates_only_what_is_new() -> None:
    model = Alphabet()
    dialogue = Dialogue(cast(Any, model))
    list(Generation(dialogue, [0, 1, 2], GREEDY, 3))  # leaves 0 1 2 3 4
    model.evaluated.clear()
    again = Generation(dialogue, [0, 1, 2, 3, 9, 8], GREEDY, 1)
    assert [token.id for token in again] == [9]
    assert (again.timings.cached, again.timings.prompt_tokens) == (4, 2)
    assert model.evaluated == [[9, 8]]
    same = Generation(dialogue, [0, 1, 2, 3, 9, 8], GREEDY, 1)
    assert [token.id for token in same] == [9]
    assert same.timings.cached == 5  # the last token is evaluated again for its logits


def test_an_interrupted_answer_leaves_a_usable_dialogue() -> None:
    model = Alphabet()
    dialogue = Dialogue(cast(Any, model))
    answer = Generation(dialogue, [0], GREEDY)
    next(answer)
    model.interrupts = True  # when the second token is evaluated, but not read
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    assert dialogue.ids == [0, 1]
    assert [token.id for token in Generation(dialogue, [0, 1, 2, 3, 4], GREEDY, 2)] == [5, 6]
    assert [token.id for token in Generation(dialogue, [0, 1], GREEDY, 2)] == [2, 3]
    assert dialogue.ids == [0, 1, 2]
    assert list(answer) == []


def test_a_step_after_an_interrupt_reads_what_was_not_read() -> None:
    model = Alphabet()
    dialogue = Dialogue(cast(Any, model))
    request = Request([0], tokenizer=model.tokenizer, context=64, sampler=GREEDY, limits=Limits(3), reserves_all=False)
    dialogue.begin(request)
    found = []
    while not request.is_over:
        model.interrupts = len(model.evaluated) % 2 == 0
        try:
            found += [token.id for _, token in dialogue.step()]
        except KeyboardInterrupt:
            continue
    assert found == [1, 2, 3]
    assert model.evaluated == [[0], [0], [1], [1], [2], [2]]


@given(text=st.text("ab", max_size=20), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_the_first_one_would_be_found(text: str, stops: list[str]) -> None:
    held = StopStrings(stops)
    out = ""
    for char in text:
        out += held.push(char)
        if held.found is not None:
            break
    else:
        out += held.flush("")
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (out, held.found) == (text, None)
    else:
        # The stop string that is complete first ends the text, and nothing of it comes out.
        assert held.found is not None
        assert text.startswith(out + held.found)
        assert len(out) + len(held.found) == min(ends)
