"""A loaded model as the server uses it: its texts become jobs of its runner."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lltool.engine.adapters import scales_of
from lltool.engine.calls.answer_format import AnswerFormat
from lltool.engine.calls.chat_format import NO_TOOLS, ChatFormat, ToolUse
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.model import Model, load_model
from lltool.engine.rank import encode_pair, encode_text
from lltool.engine.request import Limits
from lltool.engine.sampling_settings import shipped_settings
from lltool.engine.server.embedder import Embedder, Text
from lltool.engine.server.errors import ApiError, bad_request
from lltool.engine.server.fields import GenerationFields, adapter_scales, make_samplers, stop_texts
from lltool.engine.server.job import Inbox, Job
from lltool.engine.server.runner import Runner
from lltool.engine.server.settings import ServerSettings
from lltool.engine.server.trace import Trace
from lltool.engine.text.chat import ChatTemplate, Message, read_chat_template
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.text_file import read_text

T = TypeVar("T")
Made = Literal["texts", "vectors", "scores"]
_WHAT: dict[Made, str] = {
    "texts": "a model that generates text",
    "vectors": "an embedding model, for /v1/embeddings",
    "scores": "a reranker, for /v1/rerank",
}
_LONG = 100_000  # characters, above which texts are encoded one at a time
_OWN_VARIABLES = frozenset(
    ("messages", "bos_token", "eos_token", "add_generation_prompt", "date", "parse_special", "self")
)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Begins the message of an InputError with the place of a text."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


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
    def load(cls, name: str, path: Path, settings: ServerSettings, trace: Trace | None = None) -> "Served":
        """Loads a model. Raises InputError as `load_model` does."""
        model = load_model(path, sequences=settings.parallel, output=None, **settings.load)
        if model.output == "logits" and model.config.pooling.is_stated:  # a decoder that was trained to make vectors
            model.close()
            model = load_model(path, sequences=settings.parallel, output="pooled", **settings.load)
        try:
            _ = model.tokenizer, shipped_settings(model.file.metadata, given=list(settings.sampling))
            observe = None if trace is None else lambda step: trace.step(name, step)
            runner = Runner(model, most=settings.parallel + settings.queue, keep=settings.keep, observe=observe)
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
    def chat_format(self) -> ChatFormat:
        """What is known of the template: how the model reasons and calls tools."""
        return ChatFormat.read(self.template)

    @cached_property
    def embedder(self) -> Embedder:
        return Embedder(self)

    @property
    def makes(self) -> Made:
        """What the model was made for."""
        if self.model.output == "logits":
            return "texts"
        return "scores" if self.model.config.pooling.ranks else "vectors"

    def check_makes(self, wanted: Made) -> None:
        """Raises ApiError 400, which says what the model is, if it cannot make this. Any decoder makes vectors."""
        if self.makes != wanted and (self.makes, wanted) != ("texts", "vectors"):
            what = f"{self.name} is {_WHAT[self.makes]}; it makes no {wanted}"
            raise ApiError(400, what, "model", "unsupported_model")

    async def pool(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """A row for each text, as `Embedder.pool` gives it. Raises ApiError."""
        try:
            rows = await self.embedder.pool(texts)
            if not np.isfinite(rows).all():
                raise ApiError(500, f"{self.name} gives numbers that are not finite; its file may be damaged")
            return rows
        except InputError as error:
            raise bad_request(str(error).replace(str(self.path), self.name), "model") from None

    async def encode_inputs(self, texts: Sequence[str], param: str, *, truncate: bool) -> list[list[int]]:
        """The tokens of texts to pool, with those that the model wants around them. Raises ApiError."""

        def encode() -> list[list[int]]:
            found = []
            for place, text in enumerate(texts):
                with _named(f"{param}.{place}" if len(texts) > 1 else param):
                    found.append(encode_text(self.model, self._limited(text, param, truncate), truncate=truncate))
            return found

        return await self._in_turn(sum(map(len, texts)), encode, param=param)

    async def encode_pairs(self, pairs: Sequence[tuple[str, str]], param: str, *, truncate: bool) -> list[Text]:
        """The tokens of queries with their documents, and the tokens' types. Raises ApiError."""

        def encode() -> list[Text]:
            found = []
            for place, (query, document) in enumerate(pairs):
                with _named(f"{param}.{place}"):
                    query = self._limited(query, param, False)
                    document = self._limited(document, param, truncate)
                    found.append(encode_pair(self.model, query, document, truncate=truncate))
            return found

        return await self._in_turn(sum(len(query) + len(document) for query, document in pairs), encode, param=param)

    def _limited(self, text: str, param: str, truncate: bool) -> str:
        """A text that it is reasonable to encode: of one that is far too long, with `truncate`, its beginning.

        Raises ApiError, without encoding it, for a text that has too many tokens however it is encoded.
        """
        if len(text) > _LONG:
            # A quarter of the bytes: normalizing can shorten a text.
            bytes_a_token = 4 * self._longest_piece
            least = len(text.encode("utf-8", "replace")) // bytes_a_token
            if least >= self.model.context and not truncate:
                raise self._too_long(f"at least {least}", least, param)
            text = text[: (self.model.context + 1) * bytes_a_token] if truncate else text
        return text

    async def encode_text(self, text: str) -> list[int]:
        """The tokens of a text to continue, with the begin token that the model wants."""
        self.check_makes("texts")
        return await self._in_turn(len(text), lambda: self._encode_text(text), param="prompt")

    async def encode_chat(
        self, messages: Sequence[Message], variables: Mapping[str, Any], use: ToolUse = NO_TOOLS
    ) -> list[int]:
        """The tokens of a conversation; if its last message is the assistant's, this is what is continued."""
        self.check_makes("texts")
        size = sum(len(message["content"]) for message in messages)
        return await self._in_turn(size, lambda: self._encode_chat(messages, variables, use), variables)

    async def render_chat(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        use: ToolUse = NO_TOOLS,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as the model sees it."""

        def render() -> str:
            prepared, more = self.chat_format.prepare(messages, use)
            return self.template.render(prepared, add_generation_prompt=add_generation_prompt, **{**more, **variables})

        return await self._in_turn(0, render, variables)

    async def read_format(self) -> AnswerFormat:
        """How the model answers. Raises ApiError if there is no template."""
        return await self._in_turn(0, lambda: self.chat_format.format)

    async def read_template(self) -> str:
        """The source of the template. Raises ApiError if there is none."""
        return await self._in_turn(0, lambda: self.template.source)

    async def _in_turn(
        self, size: int, do: Callable[[], T], variables: Mapping[str, Any] | None = None, *, param: str = "messages"
    ) -> T:
        """Does work on texts of `size` characters in a thread; of long ones, one at a time, as they take memory."""
        if own := _OWN_VARIABLES.intersection(variables or ()):
            raise bad_request(f"chat_template_kwargs: {min(own)} is set by the server", "chat_template_kwargs")
        try:
            async with self._long_texts if size > _LONG else nullcontext():
                return await asyncio.to_thread(do)
        except InputError as error:
            raise bad_request(str(error).removeprefix(f"{self.path}: "), param) from None

    def _encode_text(self, text: str) -> list[int]:
        text = self._limited(text, "prompt", False)
        return self.tokenizer.with_begin(self.tokenizer.encode(text, add_special=False, parse_special=True))

    def _encode_chat(self, messages: Sequence[Message], variables: Mapping[str, Any], use: ToolUse) -> list[int]:
        begun = ""
        if len(messages) > 1 and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            begun, messages = messages[-1]["content"], messages[:-1]
        prepared, more = self.chat_format.prepare(messages, use)
        ids = self.template.encode(prepared, **{**more, **variables})
        return ids + self.tokenizer.encode(begun, add_special=False) if begun else ids

    def check_prompt(self, ids: Sequence[int]) -> None:
        """Raises ApiError for a prompt that fills the context, or has unknown tokens."""
        if len(ids) >= self.model.context:
            raise self._too_long(str(len(ids)), len(ids), "prompt")
        self._check_tokens(ids, "prompt")

    def check_input(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError for a text to pool that is longer than the context, or has unknown tokens."""
        if len(ids) > (context := self.model.context):
            raise ApiError(
                400,
                f"{param}: {len(ids)} tokens do not fit the context of {context}",
                param,
                "context_length_exceeded",
                {"n_prompt_tokens": len(ids), "n_ctx": context},
            )
        self._check_tokens(ids, param)

    def _check_tokens(self, ids: Sequence[int], param: str) -> None:
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

    async def matcher(self, make: Constraint | Callable[[], Matcher | None] | None) -> Matcher | None:
        """What follows a constraint, or what `make` makes. Raises ApiError if it cannot be honoured."""
        if make is None:
            return None
        try:
            if isinstance(make, Constraint):
                return await asyncio.to_thread(self.model.grammars.matcher, make)
            return await asyncio.to_thread(make)
        except InputError as error:
            raise bad_request(str(error), code="unsupported_constraint") from None

    def make_jobs(
        self,
        prompts: Sequence[Sequence[int]],
        fields: GenerationFields,
        most: int | None,
        scores: Scores | None = None,
        *,
        ends: frozenset[int] = frozenset(),
        matcher: Matcher | None = None,
        signs: Mapping[int, str] = MappingProxyType({}),
    ) -> list[Job]:
        """A job for each answer, those of the first prompt first. `most` are tokens at most, None as many as fit.

        Tokens of `ends` end an answer too; each answer follows a `matcher` like this one.

        Raises ApiError for a prompt that does not fit the context, too many answers, and bad settings.
        """
        self.check_makes("texts")
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
        if fields.id_slot is not None and fields.id_slot >= self.settings.parallel:
            raise bad_request(f"id_slot: {fields.id_slot}, wanted -1 to {self.settings.parallel - 1}", "id_slot")
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
                        matcher=matcher and matcher.fork(),
                        signs=signs,
                        scales=scales,
                        top=scores.top if scores else None,
                        slot=-1 if fields.id_slot is None else fields.id_slot,
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
