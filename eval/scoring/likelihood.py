"""Log-likelihoods of given tokens and texts, on which evaluation harnesses are based."""

from collections.abc import Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lltool.engine.inputs import token_ids
from lltool.engine.model import Model, Tokens
from lltool.eval.common.steps import CountProgress
from lltool.eval.scoring.branches import Branches, EndingScores, score_branches
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Likelihood:
    """A continuation's natural log-probability, whether each of its tokens is the most probable one, and its length."""

    logprob: float
    is_greedy: bool
    tokens: int


def loglikelihoods(
    model: Model, pairs: Iterable[tuple[str, str]], *, progress: CountProgress | None = None
) -> list[Likelihood]:
    """The likelihood of each (context, continuation) under `model`, as lm-evaluation-harness defines it.

    Pairs with the same context share its computation. Raises InputError for a continuation without tokens and a pair
    longer than the model's context.
    """
    return token_loglikelihoods(model, [encode_pair(model, *pair) for pair in pairs], progress=progress)


def rolling_loglikelihoods(
    model: Model, texts: Iterable[str], *, progress: CountProgress | None = None
) -> list[Likelihood]:
    """The likelihood of each whole text, whatever its length; every token is predicted once.

    A text longer than the model's context is cut into windows of that length; the last window starts earlier, so that
    it is full too. The first token is predicted from the vocabulary's begin token.
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
    model: Model, pairs: List[tuple[Tokens, Tokens]], *, progress: CountProgress | None = None
) -> list[Likelihood]:
    """Like `loglikelihoods`, for token ids."""
    for context, continuation in pairs:
        if len(context) + len(continuation) - 1 > model.context:
            raise InputError(
                f"a continuation of {len(continuation)} tokens after {len(context)}, but the model was loaded for "
                f"{model.context}; load it with a larger context or shorten the text"
            )
    # Sorting makes similar contexts neighbours, whose common prefix is computed once.
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


@dataclass(frozen=True)
class ScoredTokens:
    """The tokens of a text and the natural log-probability of each after those before it; (T,) each.

    `is_best` says whether no token was more probable.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float64]
    is_best: NDArray[np.bool_]

    @property
    def total(self) -> float:
        """The natural log-probability of the whole text."""
        return float(self.logprobs.sum())


def score_tokens(model: Model, ids: Tokens) -> ScoredTokens:
    """Scores each token of a text. The first is predicted from the vocabulary's begin token, which is not scored.

    Raises InputError for a text that is longer than the model's context, and for a vocabulary without a begin token.
    """
    begin, text = begin_token(model), token_ids(ids, model.config.vocab)
    text = text[1:] if len(text) and text[0] == begin else text
    ((scores,),) = score_branches(model, [Branches([begin], [text])], find_best=True)
    return ScoredTokens(text, scores.logprobs, scores.is_best)


def encode(model: Model, text: str, *, begin: bool = True) -> list[int]:
    """Token ids; control tokens in the text are parsed. `begin` adds the vocabulary's begin token if it is missing."""
    ids = model.tokenizer.encode(text, add_special=False, parse_special=True)
    return model.tokenizer.with_begin(ids) if begin else ids


def encode_pair(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of the context and of the continuation, split where lm-evaluation-harness splits them.

    Both are encoded as one text. The continuation starts after as many tokens as the context alone has; spaces at the
    end of the context belong to the continuation. An empty context becomes the begin token.
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
    """The token that precedes a text: BOS, or else EOS. Raises InputError if the vocabulary has neither."""
    for id in (model.tokenizer.bos, model.tokenizer.eos):
        if id is not None:
            return id
    raise InputError(f"{model.file.path}: the vocabulary has no BOS or EOS token to begin a text with")


def cut_rolling(ids: List[int], begin: int, context: int) -> list[tuple[List[int], List[int]]]:
    """Pairs of context and continuation that predict each token once; a full pair computes `context` tokens."""
    if not ids:
        return []
    pairs: list[tuple[List[int], List[int]]] = [([begin], ids[:context])]
    for start in range(context, len(ids), context):
        stop = min(start + context, len(ids))
        pairs.append((ids[stop - context - 1 : start], ids[start:stop]))
    return pairs


def _likelihood(scores: EndingScores) -> Likelihood:
    return Likelihood(float(scores.logprobs.sum()), bool(scores.is_best.all()), len(scores.logprobs))
