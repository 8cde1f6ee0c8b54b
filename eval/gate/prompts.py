"""The gate's fixed prompts, a model's answers to them, and whether a model would still give those answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, expm1, log

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.engine.text.chat import TEMPLATE_KEY, ChatTemplate
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value

Messages = tuple[dict[str, str], ...]

# Facts, sums, code, another language, a system message and earlier turns: templates and quantization can spoil these.
PROMPTS: tuple[Messages, ...] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    ({"role": "user", "content": "If I have 3 apples and eat one, how many are left? Explain."},),
    ({"role": "user", "content": "Write a Python function that returns the n-th Fibonacci number."},),
    ({"role": "user", "content": "Translate to French: Good morning, my friend. How are you today?"},),
    ({"role": "user", "content": "Continue the story: Once upon a time there was a small robot who"},),
    ({"role": "user", "content": "Give me a JSON object with the keys name, age and city."},),
    (
        {"role": "system", "content": "You are a pirate. Answer in one sentence."},
        {"role": "user", "content": "Tell me about the sea."},
    ),
    (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": "What is photosynthesis?"},
    ),
)
_DATE = "2026-01-01"  # fixed, because some templates tell the model the date


@dataclass(frozen=True)
class PromptAnswer:
    """A prompt as the model read it, its greedy answer token by token, and the tokens' log-probabilities."""

    messages: Messages
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]  # natural logarithms


@dataclass(frozen=True)
class Followed:
    """A model that is teacher-forced with an answer: `flips` counts tokens at which another one was most probable.

    `divergence` is the mean over the answer's tokens, in nats, of the divergence of two outcomes: the token, or any
    other.
    """

    flips: int
    divergence: float


def encode_prompts(
    metadata: Mapping[str, Value], tokenizer: Tokenizer, prompts: Sequence[Messages] = PROMPTS
) -> list[list[int] | None]:
    """The token ids of each prompt in the model's chat template or, without a template, of its last message.

    None stands for a prompt that the template refuses, as some templates refuse system messages.
    """
    if TEMPLATE_KEY not in metadata:
        return [tokenizer.encode(messages[-1]["content"]) for messages in prompts]
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    found: list[list[int] | None] = []
    for messages in prompts:
        try:
            found.append(template.encode(messages, date=_DATE))
        except InputError:
            found.append(None)
    return found


def answer(model: Model, prompts: Sequence[tuple[Messages, Sequence[int]]], length: int) -> list[PromptAnswer]:
    """The most probable tokens after each prompt, `length` or up to the text's end; all prompts advance together."""
    ends = model.tokenizer.end_of_generation
    sequences = [model.new_sequence() for _ in prompts]
    logits = [model.evaluate(sequence, ids) for sequence, (_, ids) in zip(sequences, prompts, strict=True)]
    tokens: list[list[int]] = [[] for _ in prompts]
    log_probs: list[list[float]] = [[] for _ in prompts]
    unfinished = list(range(len(prompts)))
    try:
        while True:
            for i, row in zip(unfinished, logits, strict=True):
                tokens[i].append(int(row.argmax()))
                log_probs[i].append(_log_prob(row, tokens[i][-1]))
            unfinished = [i for i in unfinished if tokens[i][-1] not in ends and len(tokens[i]) < length]
            if not unfinished:
                break
            logits = list(model.forward([(sequences[i], tokens[i][-1:], "last") for i in unfinished]).all())
    finally:
        for sequence in sequences:
            sequence.free()
    found = zip(prompts, tokens, log_probs, strict=True)
    return [PromptAnswer(messages, tuple(ids), tuple(chosen), tuple(logs)) for (messages, ids), chosen, logs in found]


def follow(model: Model, prompt: Sequence[int], answer: PromptAnswer) -> Followed:
    """Teacher-forces the model with the answer after `prompt`, token by token as in generation.

    Each step continues with the recorded token, so that a near tie is one flip and not a different text.
    """
    sequence = model.new_sequence()
    flips, total, piece = 0, 0.0, list(prompt)
    try:
        for token, expected in zip(answer.tokens, answer.log_probs, strict=True):
            logits = model.evaluate(sequence, piece)
            flips += int(logits.argmax()) != token
            total += _divergence(expected, _log_prob(logits, token))
            piece = [token]
    finally:
        sequence.free()
    return Followed(flips, total / len(answer.tokens))


def _log_prob(logits: NDArray[np.float32], token: int) -> float:
    centred = logits - logits.max()
    return float(centred[token] - np.log(np.exp(centred).sum(dtype=np.float64)))


def _divergence(p: float, q: float) -> float:
    """The divergence between two distributions of two outcomes, of which one outcome has log-probabilities p and q."""
    others_p, others_q = (max(-expm1(x), 2.0**-24) for x in (p, q))  # the smallest rest that float32 resolves
    return exp(p) * (p - q) + others_p * log(others_p / others_q)
