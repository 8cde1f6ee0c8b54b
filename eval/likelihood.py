"""Log-likelihoods of given tokens and texts: what perplexity, tasks and evaluation harnesses are made of."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model, Tokens
from lltool.eval.branches import Branches, EndingScores, score_branches
from lltool.gguf.errors import InputError

# Called with requests done and requests in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: the logarithm of its probability, whether all its tokens are the most probable ones."""

    logprob: float
    is_greedy: bool
    tokens: int


def score_tokens(
    model: Model, contexts: Iterable[Tokens], continuations: Iterable[Tokens]
) -> Iterator[NDArray[np.float64]]:
    """Natural logarithms of the probabilities of each continuation's tokens after its context, pair by pair in order.

    Token i of a continuation is predicted from its context, of one token or more, and the tokens before i. Pairs share
    batches as far as batch and cache have room; a longer one takes several.
    """
    pairs = zip(contexts, continuations, strict=True)
    for scores in score_branches(model, (Branches(context, [continuation]) for context, continuation in pairs)):
        yield scores[0].logprobs


def loglikelihoods(
    model: Model, pairs: Iterable[tuple[str, str]], *, progress: Progress | None = None
) -> list[Likelihood]:
    """How likely `model` takes each (context, continuation) to be, as lm-evaluation-harness asks for it.

    Pairs of one context share its computation. Raises InputError for a continuation without tokens and a pair longer
    than the model's context.
    """
    return token_loglikelihoods(model, [encode_pair(model, *pair) for pair in pairs], progress=progress)


def rolling_loglikelihoods(model: Model, texts: Iterable[str], *, progress: Progress | None = None) -> list[Likelihood]:
    """How likely each text is from its beginning on, however long: every token is predicted once.

    A text longer than the model's context is cut into windows of it; the last one reaches back to be full. The first
    token is predicted from the vocabulary's begin token.
    """
    begin = begin_token(model)
    windows = [cut_rolling(encode(model, text, begin=False), begin, model.context) for text in texts]
    found = iter(token_loglikelihoods(model, [pair for cut in windows for pair in cut], progress=progress))
    results = []
    for cut in windows:
        parts = [next(found) for _ in cut]
        results.append(
            Likelihood(
                sum(part.logprob for part in parts), all(part.is_greedy for part in parts), sum(p.tokens for p in parts)
            )
        )
    return results


def token_loglikelihoods(
    model: Model, pairs: List[tuple[Tokens, Tokens]], *, progress: Progress | None = None
) -> list[Likelihood]:
    """`loglikelihoods` of token ids."""
    for context, continuation in pairs:
        if len(context) + len(continuation) - 1 > model.context:
            raise InputError(
                f"a continuation of {len(continuation)} tokens after {len(context)}, the model was loaded for "
                f"{model.context}; load it with a larger context or shorten the text"
            )
    # Alike contexts become neighbours, whose common beginning is computed once.
    order = sorted(range(len(pairs)), key=lambda number: tuple(pairs[number][0]))
    groups = [list(numbers) for _, numbers in groupby(order, lambda number: tuple(pairs[number][0]))]
    branches = (Branches(pairs[numbers[0]][0], [pairs[number][1] for number in numbers]) for numbers in groups)
    results: list[Likelihood | None] = [None] * len(pairs)
    done = 0
    for numbers, scores in zip(groups, score_branches(model, branches, find_best=True), strict=True):
        for number, found in zip(numbers, scores, strict=True):
            results[number] = _likelihood(found)
        done += len(numbers)
        if progress:
            progress(done, len(pairs))
    return [found for found in results if found is not None]


def encode(model: Model, text: str, *, begin: bool = True) -> list[int]:
    """Token ids, control tokens in the text included; `begin`: with the begin token that the vocabulary wants.

    One that the text begins with already, as chat templates write it, is not added again.
    """
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    if begin and tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        return [tokenizer.bos, *ids]
    return ids


def encode_pair(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of both, cut as lm-evaluation-harness cuts them.

    Both are encoded as one text, of which the tokens behind those of the context alone are the continuation's; spaces
    at the context's end belong to the continuation. An empty context is the begin token.
    """
    stem = context.rstrip()
    whole = encode(model, context + continuation, begin=bool(stem))
    ids = encode(model, stem) if stem else []
    following = whole[len(ids) :]
    if not following:
        raise InputError(f"continuation {continuation!r} after {context[-40:]!r}: it has no tokens of its own")
    if ids:
        return ids, following
    begin = begin_token(model)
    return [begin], following[1:] if following[0] == begin and len(following) > 1 else following


def begin_token(model: Model) -> int:
    """The token that a text begins behind: BOS, or EOS of the text before. Raises InputError where there is neither."""
    for id in (model.tokenizer.bos, model.tokenizer.eos):
        if id is not None:
            return id
    raise InputError(f"{model.file.path}: the vocabulary has no BOS or EOS token to begin a text with")


def cut_rolling(ids: List[int], begin: int, context: int) -> list[tuple[List[int], List[int]]]:
    """Pairs of context and continuation that predict each token once; a full window computes `context` tokens."""
    if not ids:
        return []
    pairs: list[tuple[List[int], List[int]]] = [([begin], ids[:context])]
    for start in range(context, len(ids), context):
        stop = min(start + context, len(ids))
        pairs.append((ids[stop - context - 1 : start], ids[start:stop]))
    return pairs


def _likelihood(scores: EndingScores) -> Likelihood:
    return Likelihood(float(scores.logprobs.sum()), bool(scores.is_best.all()), len(scores.logprobs))
