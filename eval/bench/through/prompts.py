"""Requests of a wanted number of tokens, for any server: texts of common words, of which each is a token."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lltool.eval.bench.settings import Workload
from lltool.eval.bench.through.client import Client, Server
from lltool.gguf.errors import InputError

# Common enough to be one token each in any vocabulary.
_WORDS = tuple(
    word
    for line in (
        "time people way water day part place year work back thing man world life hand woman child school state family",
        "student group country problem house night point home room mother area money story fact month right study book",
        "job word business issue side kind head service friend father power hour game line end member law car city",
        "team minute idea body information parent face level office door health person art war history party result",
        "morning reason research girl guy moment air teacher force education",
    )
    for word in line.split()
)
_COUNTS = (16, 144)  # words of the two requests that show how many tokens a word and an empty message have
_SHORTEST = 1  # words of a prompt where the test wants none


@dataclass(frozen=True)
class Prompts:
    """Makes requests of a server. A message of n words has `head` + n * `per_word` tokens with its template."""

    model: str
    head: float
    per_word: float

    @classmethod
    def measure(cls, server: Server) -> "Prompts":
        """Asks a server for its model and how it counts. Raises InputError if it does not answer as OpenAI's do."""
        client = Client(server)
        try:
            models = client.get("/v1/models")
            try:
                model = str(models["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise InputError(f"{server.url}/v1/models: names no model; wanted OpenAI's list of them") from None
            first, second = (_count_tokens(client, model, words) for words in _COUNTS)
        finally:
            client.close()
        per_word = (second - first) / (_COUNTS[1] - _COUNTS[0])
        if per_word <= 0:
            raise InputError(f"{server.url}: says that a longer message has no more tokens ({first}, then {second})")
        return cls(model, first - per_word * _COUNTS[0], per_word)

    def body(self, prompt: int, generation: int, seed: str) -> dict[str, Any]:
        """A request with about `prompt` tokens, template included, for an answer of `generation` tokens.

        Requests of different seeds share no more than the template's beginning, so that no cache answers them.
        """
        words = max(_SHORTEST, round((prompt - self.head) / self.per_word))
        return _chat(self.model, _text(words, seed), generation)

    def bodies(self, workload: Workload, count: int, seed: str) -> Iterator[dict[str, Any]]:
        """Requests of a workload; where several clients send them, of mixed lengths, from half to one and a half."""
        random_lengths = random.Random(f"{seed} lengths")
        generation = max(1, workload.generation)
        for number in range(count):
            scales = [random_lengths.uniform(0.5, 1.5) if workload.sequences > 1 else 1.0 for _ in range(2)]
            lengths = round(scales[0] * workload.prompt), max(1, round(scales[1] * generation))
            yield self.body(*lengths, f"{seed} {number}")


def _chat(model: str, text: str, generation: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": generation,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _text(words: int, seed: str) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def _count_tokens(client: Client, model: str, words: int) -> int:
    body = _chat(model, _text(words, f"count {words}"), 1)
    answer = client.ask({**body, "stream": False, "stream_options": None})
    if not answer.is_good or not answer.prompt_tokens:
        raise InputError(
            f"{client.server.url}: a chat of {words} words got status {answer.status}, "
            f"{answer.detail or 'without counts of tokens'}; wanted an answer with its usage"
        )
    return answer.prompt_tokens
