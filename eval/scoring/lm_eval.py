"""A model class for lm-evaluation-harness: `lm_eval --model lltool --model_args pretrained=model.gguf`.

An entry point of the group `lm_eval.models` announces the class. Releases of the harness without plugin discovery
(such as 0.4.13) know it once this module is imported, which `lltool tasks lm-eval` does first.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from lltool.engine.batch import Precision
from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import load_model
from lltool.engine.sampling import Sampler
from lltool.engine.text.chat import TEMPLATE_KEY, ChatTemplate, read_chat_template
from lltool.eval.common.steps import CountProgress
from lltool.eval.scoring.likelihood import encode, encode_pair, rolling_loglikelihoods, token_loglikelihoods
from lltool.eval.scoring.perplexity_report import describe_run
from lltool.gguf.errors import InputError

log = logging.getLogger(__name__)

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")


@register_model("lltool")
class LltoolLM(LM):  # type: ignore[misc]
    """A GGUF model. `max_length` is the longest text in tokens (default: the model's context, at most 4096).

    The harness's batch size and its device (default "cuda:0") are ignored: a batch holds up to `batch` tokens of any
    number of requests.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        threads: int | None = None,
        batch: int = 512,
        precision: Precision = "int8",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.max_gen_toks = max_gen_toks
        self.model = load_model(
            Path(pretrained), context=max_length, sequences=2, batch=batch, threads=threads, precision=precision
        )
        self._dialogue = Dialogue(self.model)

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness distinguishes its request caches."""
        return str(self.model.file.path)

    def get_model_info(self) -> dict[str, Any]:
        """The model and settings, which the harness adds to its results."""
        return describe_run(self.model)

    def chat_template(self, chat_template: bool | str = False) -> str:
        value = self.model.file.metadata.get(TEMPLATE_KEY)
        return str(value.data) if value and chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; without a generation prompt it ends with the last message's content."""
        text = self._template.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    @cached_property
    def _template(self) -> ChatTemplate:
        return read_chat_template(self.model.file, self.model.tokenizer)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [self._fit(*encode_pair(self.model, *request.args)) for request in requests]
        with _progress("Log-likelihoods", disable_tqdm) as show:
            found = token_loglikelihoods(self.model, pairs, progress=show)
        answers = [(likelihood.logprob, likelihood.is_greedy) for likelihood in found]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        with _progress("Rolling log-likelihoods", disable_tqdm) as show:
            found = rolling_loglikelihoods(self.model, texts, progress=show)
        for request, likelihood in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, likelihood.logprob)
        return [likelihood.logprob for likelihood in found]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        # In sorted order, neighbours share the longest prefixes, which stay in the cache.
        order = sorted(range(len(requests)), key=lambda number: requests[number].args[0])
        texts = [""] * len(requests)
        for number in tqdm(order, disable=disable_tqdm, desc="Generations"):
            context, options = requests[number].args
            texts[number] = "".join(self._generate(context, dict(options)))
            self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return texts

    def _generate(self, context: str, options: dict[str, Any]) -> Iterator[str]:
        until = options.pop("until", None) or []
        lengths = [options.pop(name) for name in _LENGTHS if options.get(name) is not None]
        length = int(lengths[0]) if lengths else self.max_gen_toks
        sampling = {name: options.pop(name) for name in _SAMPLING if options.get(name) is not None}
        if not options.pop("do_sample", sampling.get("temperature", 0) > 0):
            sampling = {"temperature": 0}
        if unknown := {name: value for name, value in options.items() if value not in (None, False, 0, 1)}:
            raise InputError(
                f"generation options {unknown}: wanted only {', '.join((*_LENGTHS, *_SAMPLING))} and until"
            )
        room = self.model.context - length
        if room < 1:
            raise InputError(f"{length} tokens to generate leave no room in a context of {self.model.context}")
        prompt = encode(self.model, context)
        if len(prompt) > room:
            log.warning("a prompt of %d tokens is cut to its last %d", len(prompt), room)
        sampler = Sampler(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **sampling})
        stops = [until] if isinstance(until, str) else until
        for token in Generation(self._dialogue, prompt[-room:], sampler, length, stops):
            yield token.text

    def _fit(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Cuts off the beginning of a context that does not fit the model together with its continuation."""
        room = self.model.context + 1 - len(continuation)
        if len(context) > room > 0:
            log.warning("a context of %d tokens is cut to its last %d", len(context), room)
            return context[-room:], continuation
        return context, continuation


@contextmanager
def _progress(title: str, is_disabled: bool) -> Iterator[CountProgress]:
    with tqdm(desc=title, disable=is_disabled) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def run(arguments: Sequence[str]) -> int:
    """Runs lm-evaluation-harness's own command line, with the model `lltool` registered."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
    return 0
