"""A loaded model as the server uses it: its texts become jobs of its runner."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lltool.engine.adapters import scales_of
from lltool.engine.model import Model, load_model
from lltool.engine.request import Limits
from lltool.engine.sampling_settings import shipped_settings
from lltool.engine.server.embedder import Embedder
from lltool.engine.server.errors import ApiError, bad_request
from lltool.engine.server.fields import GenerationFields, adapter_scales, make_samplers, stop_texts
from lltool.engine.server.job import Inbox, Job
from lltool.engine.server.runner import Runner
from lltool.engine.server.settings import ServerSettings
from lltool.engine.text.chat import ChatTemplate, Message, read_chat_template
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.text_file import read_text

T = TypeVar("T")
_LONG = 100_000  # characters, above which texts are encoded one at a time
_OWN_VARIABLES = frozenset(
    ("messages", "bos_token", "eos_token", "add_generation_prompt", "date", "parse_special", "self")
)


@dataclass(frozen=True)
class Scores:
    """Which log-probabilities a request wants: so many of the likeliest tokens, also within the prompt."""

    top: int
    prompt: bool = False


@dataclass(eq=False)
class Served:
    """A model that is loaded, with its runner. Methods that may take long run in a thread of their own."""

    name: str
    path: Path
    settings: ServerSettings
    model: Model
    runner: Runner
    created: int = field(default_factory=lambda: int(time.time()))
    scales: tuple[float, ...] = ()  # of the adapters, for requests that state none
    _long_texts: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def load(cls, name: str, path: Path, settings: ServerSettings) -> "Served":
        """Loads a model. Raises InputError as `load_model` does."""
        model = load_model(path, sequences=settings.parallel, **settings.load)
        try:
            _ = model.tokenizer, shipped_settings(model.file.metadata, given=list(settings.sampling))
            runner = Runner(model, most=settings.parallel + settings.queue, keep=settings.keep)
        except BaseException:
            model.close()
            raise
        return cls(name, path, settings, model, runner, scales=scales_of(model.adapters))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @cached_property
    def shipped(self) -> dict[str, Any]:
        """The settings of sampling that a request need not give: those of the server, and beyond them the file's."""
        given = self.settings.sampling
        return shipped_settings(self.model.file.metadata, given=list(given)) | given

    @cached_property
    def template(self) -> ChatTemplate:
        """Raises InputError if the model has none, or a broken one."""
        if (path := self.settings.chat_template) is not None:
            return ChatTemplate.compile(read_text(path), self.tokenizer, str(path))
        return read_chat_template(self.model.file, self.tokenizer)

    @cached_property
    def embedder(self) -> Embedder:
        return Embedder(self)

    async def encode_text(self, text: str) -> list[int]:
        """The tokens of a text to continue, with the begin token that the model wants."""
        return await self._in_turn(len(text), lambda: self._encode_text(text))

    async def encode_chat(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        """The tokens of a conversation; if its last message is the assistant's, this is what is continued."""
        size = sum(len(message["content"]) for message in messages)
        return await self._in_turn(size, lambda: self._encode_chat(messages, variables), variables)

    async def render_chat(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the model sees it."""
        return await self._in_turn(
            0,
            lambda: self.template.render(messages, add_generation_prompt=add_generation_prompt, **variables),
            variables,
        )

    async def read_template(self) -> str:
        """The source of the template. Raises ApiError if there is none."""
        return await self._in_turn(0, lambda: self.template.source)

    async def _in_turn(self, size: int, do: Callable[[], T], variables: Mapping[str, Any] | None = None) -> T:
        """Does work on texts of `size` characters in a thread; of long ones, one at a time, as they take memory."""
        if own := _OWN_VARIABLES.intersection(variables or ()):
            raise bad_request(f"chat_template_kwargs: {min(own)} is set by the server", "chat_template_kwargs")
        try:
            async with self._long_texts if size > _LONG else nullcontext():
                return await asyncio.to_thread(do)
        except InputError as error:
            raise bad_request(str(error).removeprefix(f"{self.path}: "), "messages") from None

    def _encode_text(self, text: str) -> list[int]:
        """Raises ApiError, without encoding it, for a text that has too many tokens however it is encoded."""
        if len(text) > _LONG:
            # A quarter of the bytes: normalizing can shorten a text.
            least = len(text.encode("utf-8", "replace")) // (4 * self._longest_piece)
            if least >= self.model.context:
                raise self._too_long(f"at least {least}", least, "prompt")
        return self.tokenizer.with_begin(self.tokenizer.encode(text, add_special=False, parse_special=True))

    def _encode_chat(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        begun = ""
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            begun, messages = messages[-1]["content"], messages[:-1]
        ids = self.template.encode(messages, **variables)
        return ids + self.tokenizer.encode(begun, add_special=False) if begun else ids

    def check_prompt(self, ids: Sequence[int], *, param: str = "prompt") -> None:
        """Raises ApiError for a prompt that fills the context, or has unknown tokens."""
        if len(ids) >= self.model.context:
            raise self._too_long(str(len(ids)), len(ids), param)
        if unknown := [id for id in ids if id >= self.model.config.vocab]:
            raise bad_request(f"{param}: token {unknown[0]}, wanted one from 0 to {self.model.config.vocab - 1}", param)

    @cached_property
    def _longest_piece(self) -> int:
        """The bytes of the longest token."""
        return max(len(self.tokenizer.piece(id)) for id in range(self.tokenizer.size))

    def _too_long(self, shown: str, count: int, param: str) -> ApiError:
        context = self.model.context
        return ApiError(
            400,
            f"the {param} has {shown} tokens and the context {context}, of which one must be left for the answer; "
            "shorten the prompt or start the server with a larger context (-c)",
            param,
            "context_length_exceeded",
            {"n_prompt_tokens": count, "n_ctx": context},
        )

    def make_jobs(
        self,
        prompts: Sequence[Sequence[int]],
        fields: GenerationFields,
        most: int | None,
        scores: Scores | None = None,
        *,
        ends: frozenset[int] = frozenset(),
    ) -> list[Job]:
        """A job for each answer, those of the first prompt first. `most` are tokens at most, None as many as fit.

        Tokens of `ends` end an answer too.

        Raises ApiError for a prompt that does not fit the context, too many answers, and bad settings.
        """
        limits = self.settings.limits
        count = fields.n or 1
        if (answers := count * len(prompts)) > limits.choices:
            raise bad_request(f"{answers} answers were asked for, wanted at most {limits.choices}", "n")
        if scores and scores.top > limits.top_logprobs:
            raise bad_request(
                f"{scores.top} log-probabilities a token, wanted at most {limits.top_logprobs}", "top_logprobs"
            )
        for ids in prompts:
            self.check_prompt(ids)
        stops = stop_texts(fields.stop, limits)
        scales = self.scales if fields.lora is None else adapter_scales(self.model.adapters, fields.lora)
        seconds = limits.seconds
        if fields.t_max_predict_ms:
            seconds = min(seconds, fields.t_max_predict_ms / 1000)
        jobs: list[Job] = []
        inbox: Inbox = asyncio.Queue()
        for ids in prompts:
            samplers = make_samplers(fields, count, shipped=self.shipped, tokenizer=self.tokenizer)
            for sampler in samplers:
                try:
                    job = Job(
                        ids,
                        tokenizer=self.tokenizer,
                        context=self.model.context,
                        sampler=sampler,
                        limits=Limits(most, stops),
                        inbox=inbox,
                        reads_prompt=scores is not None and scores.prompt,
                        ends=ends,
                        scales=scales,
                        top=scores.top if scores else None,
                        deadline=time.perf_counter() + seconds,
                    )
                except InputError as error:
                    raise bad_request(str(error), "prompt") from None
                jobs.append(job)
        return jobs

    def close(self) -> None:
        self.runner.close()
        if "embedder" in self.__dict__:
            self.embedder.close()
        if "template" in self.__dict__:
            self.template.close()
        self.model.close()
