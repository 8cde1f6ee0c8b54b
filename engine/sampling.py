"""Sampling: chooses the next token from the logits, for one row or for many in one native call."""

import secrets
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from lltool.engine.cpu import _native
from lltool.engine.cpu.threads import Team
from lltool.engine.sampling_breakers import breaker_tokens
from lltool.engine.sampling_settings import SETTINGS, STEPS, SamplingSettings
from lltool.gguf.errors import InputError
from lltool.quant import isa

if TYPE_CHECKING:
    from lltool.engine.text.tokenizer import Tokenizer

Mask = NDArray[np.uint32]
"""Which tokens are allowed, (ceil(V / 32),): bit i % 32 of word i // 32 stands for token i."""

Ids = NDArray[np.int32]

_ALONE = Team(1)
_CHANGES = frozenset(("penalties", "dry"))  # steps that change logits by the text
_NATIVE = tuple(name for name, about in SETTINGS.items() if about.kind in ("number", "whole"))


@dataclass
class Sampler(SamplingSettings):
    """llama.cpp's chain of samplers, with a seeded draw at its end. It belongs to one text, which it remembers.

    The logit biases come first, then the steps of `samplers` in their order, of which most are off by default; with
    `mirostat`, only the temperature. `temperature` 0 takes the most probable token. The penalties and DRY look at the
    text before the token; Mirostat and adaptive-p remember how probable their choices were.

    Without a `seed`, each sampler chooses a random one and stores it in `seed`. Every token takes one number from 0 to
    1 of numpy's default generator (PCG64) with that seed, two with XTC, and none at temperature 0; so the tokens of a
    seed do not depend on what else is sampled at the same time.
    """

    _random: np.random.Generator = field(init=False, repr=False, compare=False)
    _chain: _native.SampleChain | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is None:
            self.seed = secrets.randbits(32)
        self._random = np.random.default_rng(self.seed)
        if not self._wants_tokenizer():
            self._chain = self._build(None)

    def use(self, tokenizer: "Tokenizer") -> None:
        """Prepares it for a vocabulary, which `ignore_eos` and the sequence breakers of DRY need.

        Raises InputError if `logit_bias` has a token that the vocabulary does not have.
        """
        if unknown := [id for id in self.logit_bias if id >= tokenizer.size]:
            raise InputError(f"logit_bias: token {unknown[0]}, wanted one from 0 to {tokenizer.size - 1}")
        if self._chain is None:
            self._chain = self._build(tokenizer)

    def fork(self) -> Self:
        """A sampler that has the same memory and will draw the same numbers, for a text that branches off."""
        other = copy(self)
        other._random = deepcopy(self._random)
        other._chain = None if self._chain is None else self._chain.copy()
        return other

    def sample(self, logits: NDArray[np.float32], mask: Mask | None = None, text: Ids | None = None) -> int:
        """Draws a token id from logits (V,); `text` is what comes before it.

        Raises InputError if the largest allowed logit is not finite.
        """
        if not isinstance(logits, np.ndarray) or logits.ndim != 1 or not logits.size:
            raise TypeError(f"logits of shape {np.shape(logits)}, wanted one row, (V,)")
        row = np.ascontiguousarray(logits, np.float32)
        (choice,) = _choose(row[None], [self], None if text is None else [text], [mask], _ALONE, 0)
        return checked_choice(choice, row, mask)

    @property
    def chain(self) -> _native.SampleChain:
        """The native chain. Raises InputError if it needs a tokenizer and has none."""
        if self._chain is None:
            raise InputError("ignore_eos and DRY's sequence breakers need a tokenizer; call `use` first")
        return self._chain

    @property
    def takes_likeliest(self) -> bool:
        """Whether it takes the likeliest token, which is then its choice under every mask that allows it."""
        later = list(dropwhile(_CHANGES.__contains__, self.samplers))  # here a change meets only what a step has left
        return type(self).sample is Sampler.sample and self.chain.draws == 0 and _CHANGES.isdisjoint(later)

    def draw(self, count: int) -> tuple[float, float]:
        """The next numbers of the generator, `count` of them, 0 to 2; zeros take the places of the others."""
        if count == 0:
            return 0.0, 0.0
        return self._random.random(), self._random.random() if count == 2 else 0.0

    def _wants_tokenizer(self) -> bool:
        has_dry = self.dry_multiplier > 0 and self.dry_penalty_last_n != 0 and "dry" in self.samplers
        return self.ignore_eos or bool(has_dry and not self.mirostat and self.dry_sequence_breakers)

    def _build(self, tokenizer: "Tokenizer | None") -> _native.SampleChain:
        biases, breakers = dict(self.logit_bias), []
        if tokenizer is not None:
            if self.ignore_eos:
                biases |= dict.fromkeys(tokenizer.end_of_generation, -np.inf)
            if self.dry_multiplier > 0:
                breakers = breaker_tokens(tokenizer, self.dry_sequence_breakers)
        return _native.SampleChain(
            order="".join(STEPS[step] for step in self.samplers),
            biases=list(biases.items()),
            breakers=breakers,
            **{name: getattr(self, name) for name in _NATIVE},
        )


def sample_rows(
    logits: NDArray[np.float32],
    samplers: Sequence[Sampler],
    *,
    texts: Sequence[Ids] | None = None,
    masks: Sequence[Mask | None] | None = None,
    team: Team = _ALONE,
    poll: int = 0,
) -> list[int | None]:
    """Draws a token for each row of logits (n, V), row i with samplers[i], which are all different; `team` shares them.

    `texts` are the tokens before each row's; without them, the penalties and DRY do nothing. A row whose largest
    allowed logit is not finite gives a negative number, for which `checked_choice` raises. A sampler of a subclass with
    a `sample` of its own gives None: the caller is to ask it.
    """
    own = [type(sampler).sample is not Sampler.sample for sampler in samplers]
    if not any(own):
        return list(_choose(logits, samplers, texts, masks, team, poll))
    if all(own):
        return [None] * len(samplers)
    shared = [None if is_own else sampler for sampler, is_own in zip(samplers, own, strict=True)]
    choices = _choose(logits, shared, texts, masks, team, poll)
    return [None if is_own else choice for choice, is_own in zip(choices, own, strict=True)]


def checked_choice(choice: int, logits: NDArray[np.float32], mask: Mask | None = None) -> int:
    """The choice that was made from logits (V,). Raises InputError if it says that none could be made."""
    if choice >= 0:
        return choice
    if mask is not None and not mask.any():
        raise InputError("the mask allows no token; wanted at least one")
    if np.isfinite(logits[~choice]):
        raise InputError("the logit biases allow no token; wanted at least one")
    raise InputError(
        f"the logit of token {~choice} is {logits[~choice]}: the weights, or numbers in the metadata, are damaged"
    )


def _choose(
    logits: NDArray[np.float32],
    samplers: Sequence[Sampler | None],
    texts: Sequence[Ids] | None,
    masks: Sequence[Mask | None] | None,
    team: Team,
    poll: int,
) -> list[int]:
    chains: list[_native.SampleChain | None] = []
    draws: list[float] = []
    for sampler in samplers:
        chain = None if sampler is None else sampler.chain
        chains.append(chain)
        draws += (0.0, 0.0) if sampler is None or chain is None else sampler.draw(chain.draws)
    wanted = [] if texts is None or not any(chain and chain.wants_text for chain in chains) else list(texts)
    return _native.sample(
        isa=isa.chosen(),
        logits=logits,
        chains=chains,
        draws=draws,
        texts=wanted,
        masks=[] if masks is None else list(masks),
        team=team.places() if len(samplers) > 1 and team.threads > 1 else None,
        poll=poll,
    )
