"""The reference of sampling, in numpy: each step of the chain by its definition, over one row of logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lltool.engine.sampling_settings import SamplingSettings

Doubles = NDArray[np.float64]


class Left(NamedTuple):
    """The tokens that are left, most probable first, equal ones in order of their ids; `logits` are those of the row,
    and their distribution is that of logits / temperature."""

    ids: NDArray[np.intp]
    logits: NDArray[np.float32]
    temperature: float

    def scaled(self) -> Doubles:
        return (self.logits.astype(np.float64) - self.logits[0]) / self.temperature

    def shares(self) -> Doubles:
        weights = np.exp(self.scaled())
        shares: Doubles = weights / weights.sum()
        return shares

    def first(self, count: int) -> "Left":
        return self.where(np.arange(len(self.ids)) < max(count, 1))

    def where(self, keep: NDArray[np.bool_]) -> "Left":
        return Left(self.ids[keep], self.logits[keep], self.temperature)


def sort(ids: NDArray[np.intp], logits: NDArray[np.float32], temperature: float = 1) -> Left:
    order = np.lexsort((ids, -logits))
    return Left(ids[order], logits[order], temperature)


@dataclass
class Reference:
    """A chain with its memory of a text."""

    settings: SamplingSettings
    breakers: Sequence[tuple[int, list[int]]] = ()
    mu: float = field(init=False)
    memory: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings
        self.mu = 2 * s.mirostat_tau
        self.memory = s.adaptive_target / (1 - s.adaptive_decay), 1 / (1 - s.adaptive_decay)

    def left(self, logits: NDArray[np.float32], text: Sequence[int], chance: float) -> Left:
        """What the steps before the draw leave."""
        s = self.settings
        row = logits.copy()
        for id, bias in s.logit_bias.items():
            row[id] += np.float32(bias)
        steps = ("temperature",) if s.mirostat else s.samplers
        ids = np.flatnonzero(row > -np.inf)
        left = sort(ids, row[ids])
        for step in steps:
            left = self._step(step, left, text, chance)
        return left

    def choose(self, logits: NDArray[np.float32], text: Sequence[int], draw: float, chance: float) -> int:
        """The token that the chain takes for a `draw` and a `chance` of XTC from 0 to 1."""
        s, left = self.settings, self.left(logits, text, chance)
        if s.mirostat:
            left = self.mirostat_left(left, len(logits))
            chosen = take(np.exp(left.scaled()), draw)
        elif "adaptive_p" in s.samplers and s.adaptive_target >= 0:
            chosen = take(self.adaptive_weights(left), draw)
        else:
            chosen = take(np.exp(left.scaled()), draw)
        self.remember(float(left.shares()[chosen]))
        return int(left.ids[chosen])

    def adaptive_weights(self, left: Left) -> Doubles:
        total, weight = self.memory
        target = np.clip(2 * self.settings.adaptive_target - total / weight, 0, 1)
        gap = np.abs(left.shares() - target) / 0.3
        weights: Doubles = np.exp(5 - 10 * gap**2 / (1 + gap))
        return weights

    def remember(self, share: float) -> None:
        """Notes the probability of the chosen token, among those that were left."""
        s, (total, weight) = self.settings, self.memory
        self.mu -= s.mirostat_eta * (-np.log2(share) - s.mirostat_tau)
        self.memory = share + s.adaptive_decay * total, 1 + s.adaptive_decay * weight

    def _step(self, step: str, left: Left, text: Sequence[int], chance: float) -> Left:
        s, count = self.settings, len(left.ids)
        match step:
            case "penalties":
                return self._penalties(left, text)
            case "dry":
                return self._subtract(left, dry(s, text, self.breakers))
            case "top_n_sigma" if s.top_n_sigma > 0:
                return left.where(left.logits >= left.logits[0] - s.top_n_sigma * left.logits.std(dtype=np.float64))
            case "top_k" if s.top_k > 0:
                return left.first(s.top_k)
            case "typ_p" if s.typical_p < 1:
                shares = left.shares()
                surprise = -np.log(shares)
                entropy = (shares * surprise).sum()
                order = np.lexsort((left.ids, -left.logits, np.abs(surprise - entropy)))
                enough = np.flatnonzero(shares[order].cumsum() > s.typical_p)
                kept = order[: enough[0] + 1] if enough.size else order
                return left.where(np.isin(np.arange(count), kept))
            case "top_p" if s.top_p < 1:
                enough = np.flatnonzero(left.shares().cumsum() >= s.top_p)
                return left.first(enough[0] + 1) if enough.size else left
            case "min_p" if s.min_p > 0:
                floor = np.float32(left.logits[0] + np.log(s.min_p) * left.temperature)
                return left.where(left.logits >= min(floor, left.logits[0]))
            case "xtc" if s.xtc_probability > 0 and s.xtc_threshold <= 0.5 and chance <= s.xtc_probability:
                above = np.count_nonzero(left.shares() >= s.xtc_threshold)
                return left.where(np.arange(count) >= above - 1)
            case "temperature":
                temperature = s.temperature
                if s.dynatemp_range > 0 and not s.mirostat:
                    if count < 2:
                        return left
                    positive = left.shares()[left.shares() > 0]
                    entropy = -(positive * np.log(positive)).sum() / np.log(count)
                    low, high = max(0, temperature - s.dynatemp_range), temperature + s.dynatemp_range
                    temperature = low + (high - low) * np.clip(entropy, 0, 1) ** s.dynatemp_exponent
                if temperature * left.temperature < 1e-6:
                    return left.first(1)
                return left._replace(temperature=left.temperature * temperature)
        return left

    def _penalties(self, left: Left, text: Sequence[int]) -> Left:
        s = self.settings
        if s.repeat_last_n == 0 or (s.repeat_penalty, s.frequency_penalty, s.presence_penalty) == (1, 0, 0):
            return left
        window = list(text[max(0, len(text) - s.repeat_last_n) :] if s.repeat_last_n > 0 else text)
        left = _cool(left) if set(window) else left
        repeat = np.float32(s.repeat_penalty)
        logits = left.logits.copy()
        for i, id in enumerate(left.ids.tolist()):
            if times := window.count(id):
                logits[i] = logits[i] * repeat if logits[i] <= 0 else logits[i] / repeat
                logits[i] -= np.float32(times) * np.float32(s.frequency_penalty) + np.float32(s.presence_penalty)
        return sort(left.ids, logits, left.temperature)

    def _subtract(self, left: Left, penalties: dict[int, float]) -> Left:
        if not penalties:
            return left
        left = _cool(left)
        less = np.array([penalties.get(id, 0) for id in left.ids.tolist()], np.float32)
        return sort(left.ids, left.logits - less, left.temperature)

    def mirostat_left(self, left: Left, vocabulary: int) -> Left:
        if self.settings.mirostat == 2:
            return left.first(int(np.argmax(np.append(-np.log2(left.shares()) > self.mu, True))))
        places = np.arange(1, min(100, len(left.ids)))
        t = np.log((places + 1) / places)
        b = -np.diff(left.scaled()[:100])
        with np.errstate(all="ignore"):
            slope = (t * b).sum() / (t * t).sum()
            excess = slope - 1
            k = (excess * 2**self.mu / (1 - float(vocabulary) ** -excess)) ** (1 / slope)
        return left.first(int(k) if k < vocabulary else (vocabulary if k >= vocabulary else 1))


def take(weights: Doubles, draw: float) -> int:
    cumulative = weights.cumsum()
    last = int(np.flatnonzero(weights > 0)[-1])
    return min(last, int(np.searchsorted(cumulative, draw * cumulative[-1], side="right")))


def dry(s: SamplingSettings, text: Sequence[int], breakers: Sequence[tuple[int, list[int]]]) -> dict[int, float]:
    """What DRY subtracts from the logits of tokens: by trying each of them."""
    window = list(text[max(0, len(text) - s.dry_penalty_last_n) :] if s.dry_penalty_last_n >= 0 else text)
    if s.dry_multiplier == 0 or len(window) <= s.dry_allowed_length:
        return {}
    behind = [  # the tokens behind each breaker in the window
        (start, len(window) - start - 1 - len(tail))
        for head, tail in breakers
        for start in range(len(window) - len(tail))
        if window[start] == head and window[start + 1 : start + 1 + len(tail)] == tail
    ]
    # The last first token counts, and of those with the same one, the longest breaker.
    limit = min((after for start, after in behind if start == max(behind)[0]), default=len(window))
    found: dict[int, float] = {}
    for place in range(1, len(window)):  # window[place] follows what may be a repetition of the window's end
        length = 0
        while length < min(place, limit) and window[place - 1 - length] == window[-1 - length]:
            length += 1
        if length >= s.dry_allowed_length and (window[place], []) not in breakers:
            power = length - s.dry_allowed_length
            if s.dry_base > 1.000001:
                power = min(power, int(88.7228391 / np.log(s.dry_base)))
            found[window[place]] = max(found.get(window[place], 0), s.dry_multiplier * s.dry_base**power)
    return found


def _cool(left: Left) -> Left:
    """The temperature becomes part of the logits."""
    return Left(left.ids, (left.logits / left.temperature).astype(np.float32), 1)
