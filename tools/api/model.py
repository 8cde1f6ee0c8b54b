"""The front door to running a model: `lltool.load`, and what it returns."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import CacheType, Precision
from lltool.engine.calls.chat_format import choose_tools
from lltool.engine.calls.read_tools import read_tools
from lltool.engine.calls.reply import Reply, reply
from lltool.engine.cpu.threads import Threads
from lltool.engine.embed import embed
from lltool.engine.generate import generate, generate_all
from lltool.engine.inputs import whole_number
from lltool.engine.model import Model as EngineModel
from lltool.engine.model import load_model
from lltool.engine.models.pooling import Pooling
from lltool.engine.rank import encode_text as encode_whole
from lltool.engine.rank import rank
from lltool.engine.sampling import Sampler
from lltool.engine.sampling_settings import SETTINGS, shipped_settings
from lltool.engine.text.chat import ChatTemplate, read_chat_template
from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.divergence.comparison import compare_text, open_base
from lltool.eval.divergence.divergence import DivergenceResult
from lltool.eval.scoring.likelihood import ScoredTokens, score_tokens
from lltool.eval.scoring.likelihood import encode as encode_text
from lltool.eval.scoring.perplexity import MethodName, PerplexityResult, Scored, perplexity
from lltool.gguf import text_file
from lltool.gguf.describe import describe_file
from lltool.gguf.mapped import LoadMode
from lltool.tools.api.generated import Form, Sampling, Stream
from lltool.tools.api.inputs import Ids, Messages, Name, Prompt, Text, Tools, find, name_of, read_prompts, read_text

Value = TypeVar("Value")


class Model:
    """A model that is ready to run; `lltool.load` makes it.

    Texts are given as they are, or as token ids. Sampling has the settings and defaults of `lltool run`: `temperature`
    (0: always the likeliest token), `top_k` (0: all), `top_p`, `min_p`, a `seed` (the same one gives the same text;
    without one, each text is different), and those that `lltool run --help` lists, such as `repeat_penalty`. A setting
    that is not given is the one of `model.sampling`, which are those that the model's file ships. A text ends at
    `max_tokens`, at a text of `stop`, where the model ends it, or when the context is full. It can be constrained by a
    `grammar` in GBNF, a `regex` that matches all of it, or `choices`, of which it is one.

    Threads can share a model: their calls take turns. Streams take turns piece by piece, and each has its text in the
    cache, so load the model with as many `sequences` as there are streams at a time. In a `with` statement, or with
    `close`, file, cache and threads are freed at once, and otherwise when the model is dropped. All methods raise
    lltool.InputError, whose message is one line, for bad input.
    """

    def __init__(self, engine: EngineModel, options: Mapping[str, Any]) -> None:
        described = describe_file(engine.file)
        self.engine = engine
        """The engine's model, with sequences, logits and the tokenizer: `lltool.engine.model.Model`."""
        self.path: Path = engine.file.path
        self.architecture = engine.config.architecture
        self.type = described.file_type or "unknown type"
        """The type of most weights, such as "Q4_K_M"."""
        self.context = engine.context
        """The tokens that a text can have."""
        self.sampling: dict[str, Any] = shipped_settings(engine.file.metadata)
        """The settings of sampling that the model's file ships, such as {"temperature": 0.6}; they can be changed."""
        self._options = dict(options)
        self._engines: dict[Pooling | None, EngineModel] = {}

    def __repr__(self) -> str:
        return f"<lltool.Model {self.path.name}: {self.architecture}, {self.type}, context {self.context}>"

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, with the begin token if the model wants one. Control tokens in it are parsed.

        >>> model.tokenize("Hello world")
        [19556, 905]
        """
        return encode_text(self.engine, text)

    def detokenize(self, ids: Ids) -> str:
        """The text of token ids, without control tokens.

        >>> model.detokenize([19556, 905])
        'Hello world'
        """
        return self.tokenizer.decode(int(id) for id in ids)

    @overload
    def generate(self, prompt: Prompt, *, schema: None = None, **sampling: Unpack[Sampling]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[Prompt], *, schema: None = None, **sampling: Unpack[Sampling]) -> list[str]: ...
    @overload
    def generate(self, prompt: Prompt, *, schema: type[Value], **sampling: Unpack[Sampling]) -> Value: ...
    @overload
    def generate(self, prompt: Any, *, schema: Any, **sampling: Unpack[Sampling]) -> Any: ...
    def generate(self, prompt: Prompt | Sequence[Prompt], *, schema: Any = None, **sampling: Unpack[Sampling]) -> Any:
        """Continues a prompt, which is not put in the chat template, and returns the new text.

        A list of prompts gives a list of texts; they are computed together, and with a `seed`, text i has `seed` + i.
        With `schema`, a pydantic model, another type, or a JSON schema, the text is JSON that is valid under it, and
        its value is returned: an instance of the type, or what the JSON stands for. Raises InputError for a prompt
        that fills the context, for a constraint that cannot be honoured, and if `max_tokens` cuts the JSON off.

        >>> model.generate("The capital of France is", max_tokens=6, temperature=0)
        ' Paris.\\n\\nThe answer'
        >>> model.generate(["1, 2, 3,", "a, b, c,"], max_tokens=3, temperature=0)
        [' 4,', ' d, e']
        >>> model.generate("The capital of Japan is", choices=[" Tokyo", " Rome"], temperature=0)
        ' Tokyo'
        """
        ids, is_one = read_prompts(prompt, self.tokenize)
        limits, settings, form = self._settings(sampling, schema)
        seed = settings.pop("seed", None)
        seeds = [None if seed is None else whole_number("seed", seed) + index for index in range(len(ids))]
        samplers = [Sampler(**settings, seed=seed) for seed in seeds]
        matchers = [form.matcher(self.engine, each) for each in ids]
        with self.engine.turn():
            if not is_one:
                texts = generate_all(self.engine, ids, samplers=samplers, matchers=matchers, **limits)
                return [form.read(self.engine, *each) for each in zip(ids, texts, strict=True)]
            tokens = generate(self.engine, ids[0], sampler=samplers[0], matcher=matchers[0], **limits)
            return form.read(self.engine, ids[0], "".join(token.text for token in tokens))

    def stream(
        self,
        prompt: Prompt,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Continues a prompt as `generate` does, and gives the text piece by piece.

        >>> for piece in model.stream("The capital of France is", max_tokens=2, temperature=0):
        ...     print(repr(piece))
        ' Paris'
        '.'
        """
        ids, is_one = read_prompts(prompt, self.tokenize)
        if not is_one:
            raise TypeError(f"{len(ids)} prompts, wanted one to stream; `generate` takes several")
        limits, settings, form = self._settings(sampling)
        matcher = form.matcher(self.engine, ids[0])
        return Stream(generate(self.engine, ids[0], sampler=Sampler(**settings), matcher=matcher, **limits))

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = False,
        template: Name | None = ...,
        parse_special: bool = ...,
        schema: None = None,
        **sampling: Unpack[Sampling],
    ) -> str: ...
    @overload
    def chat(self, messages: Messages, *, schema: type[Value], **sampling: Unpack[Sampling]) -> Value: ...
    @overload
    def chat(self, messages: Messages, *, schema: Any, **sampling: Unpack[Sampling]) -> Any: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **sampling: Unpack[Sampling]) -> Stream: ...
    @overload
    def chat(
        self, messages: Messages, *, tools: Tools, tool_choice: str = ..., **sampling: Unpack[Sampling]
    ) -> Reply: ...
    def chat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        template: Name | None = None,
        parse_special: bool = False,
        schema: Any = None,
        tools: Tools | None = None,
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Any:
        """The model's answer to the messages, in its chat template or in the Jinja `template` of a file.

        `sampling` and `schema` are as in `generate`, and a stream has no `schema`. Text in messages that looks like a
        control token is text, unless `parse_special`. Raises InputError if the model has no template, and if the
        template refuses the messages.

        >>> model.chat([{"role": "user", "content": "What is the capital of Japan?"}], max_tokens=20, temperature=0)
        'The capital of Japan is Tokyo.'

        With `tools`, functions with type hints or OpenAI's objects, it is a Reply, which has `calls`; a stream of it
        gives pieces of content, reasoning and calls. `tool_choice` is "auto", "required", "none" or a tool's name.

        >>> def get_weather(city: str) -> str:
        ...     "The weather of a city."
        >>> asked = [{"role": "user", "content": "How is the weather in Rome?"}]
        >>> reply = model.chat(asked, tools=[get_weather], tool_choice="required", temperature=0)
        >>> [(call.name, call.parsed) for call in reply.calls]
        [('get_weather', {'city': 'Rome'})]
        """
        chosen = self._template if template is None else self._read_template(template)
        if tools is not None:
            limits, settings, form = self._settings(sampling, schema)
            use = choose_tools(read_tools(tools), tool_choice, is_parallel=parallel_tool_calls)
            special: dict[str, Any] = {"parse_special": parse_special, "constraint": form.constraint}
            answer = reply(self.engine, chosen, messages, use, sampler=Sampler(**settings), **special, **limits)
            return answer if stream else self._finish(answer)
        ids = chosen.encode(messages, parse_special=parse_special)
        if stream and schema is not None:
            raise TypeError("schema: a stream gives text; leave one of the two out")
        return self.stream(ids, **sampling) if stream else self.generate(ids, schema=schema, **sampling)

    def logprobs(self, text: Text) -> ScoredTokens:
        """The natural log-probability of each token of a text; the first is predicted from the begin token.

        Raises InputError for a text that is longer than the context.

        >>> scored = model.logprobs("The capital of France is Paris")
        >>> [model.detokenize([id]) for id in scored.ids]
        ['The', ' capital', ' of', ' France', ' is', ' Paris']
        >>> print(scored.logprobs.shape, bool(scored.is_best[-1]), round(scored.total))
        (6,) True -31
        """
        found = read_text(text)
        with self.engine.turn():
            return score_tokens(self.engine, self.tokenize(found) if isinstance(found, str) else found)

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, pooling: Pooling | None = None, normalize: bool = True,
        truncate: bool = False,
    ) -> NDArray[np.float32]:  # fmt: skip
        """A vector for a text, (width,), or vectors for a list of texts, (N, width).

        It is the `mean` of the states of the text's tokens after the last norm, or that of the first (`cls`) or `last`
        one; without `pooling`, what the file says, or the mean. With `normalize`, vectors have length 1, so that
        `a @ b` is the cosine of their angle. The first call takes memory for a second cache. Raises InputError for an
        empty text and, without `truncate`, for one that is longer than the context.

        >>> a, b, c = model.embed(["Paris is in France.", "France's capital is Paris.", "x = [i for i in y]"])
        >>> print(a.shape, bool(a @ b > a @ c))
        (576,) True
        """
        engine = self._pooled(pooling)
        ids, is_one = read_prompts(texts, lambda text: encode_whole(engine, text, truncate=truncate))
        with engine.turn():
            found = embed(engine, ids, pooling=pooling, normalize=normalize)
        return found[0] if is_one else found

    def rerank(
        self, query: str, documents: Sequence[str], *, truncate: bool = False, probabilities: bool = False
    ) -> NDArray[np.float64]:
        """How well each document answers the query, (N,); `probabilities` are from 0 to 1. Only rerankers can do it.

        >>> lltool.load("reranker.gguf").rerank("What is a panda?", ["A bear.", "A car."]).shape
        (2,)
        """
        return rank(self._pooled(None), query, documents, truncate=truncate, probabilities=probabilities)

    def perplexity(
        self,
        text: Text,
        *,
        context: int = 512,
        chunks: int | None = None,
        method: MethodName = "llama",
        stride: int | None = None,
        score: Scored = "half",
    ) -> PerplexityResult:
        """How well the model predicts a text, as `lltool perplexity` measures it: `perplexity` and its standard error.

        The text is read in windows of `context` tokens, the first `chunks` of them or all. Raises InputError if it has
        less than two windows, and if the model's context is shorter than a window.

        >>> result = model.perplexity(text, context=128, chunks=4)
        >>> print(f"{result.perplexity:.0f} ± {result.error:.0f}, {result.bits_per_byte:.1f} bits a byte")
        17 ± 3, 1.1 bits a byte
        """
        with self.engine.turn():
            return perplexity(
                self.engine,
                read_text(text),
                context=context,
                chunks=chunks,
                method=method,
                stride=stride,
                score=score,
                name=name_of(text),
            )

    def divergence(
        self, base: "Model | Name", text: Text | None = None, *, context: int = 512, chunks: int | None = None
    ) -> DivergenceResult:
        """How far this model's predictions are from those of `base`: `mean` and `error`, in nats a token.

        `base` is a model, the name of one, or a file of its predictions, which needs no text. Raises InputError if
        the vocabularies differ, and for texts as `perplexity` does.

        >>> result = model.divergence("small.gguf", text, context=128, chunks=4)
        >>> print(f"{result.mean:.3f} nats a token, the same best guess for {result.same_top:.0%}")
        0.003 nats a token, the same best guess for 97%
        """
        found = None if text is None else read_text(text)
        opened = (
            base.engine if isinstance(base, Model) else open_base(find(base), **self._options | {"context": context})
        )
        try:
            return compare_text(opened, self.engine, found, context=context, chunks=chunks, name=name_of(text))
        finally:
            if isinstance(opened, EngineModel) and not isinstance(base, Model):
                opened.close()

    def close(self) -> None:
        """Frees the file, the cache and the threads; afterwards the model can only be closed again."""
        if "_template" in self.__dict__:
            self._template.close()
        for made in self._engines.values():
            made.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        try:
            self.engine.__exit__(kind, error, traceback)
        finally:
            self.close()

    def _finish(self, answer: Reply) -> Reply:
        with self.engine.turn():
            for _ in answer:
                pass
        return answer

    def _settings(self, sampling: Sampling, schema: Any = None) -> tuple[dict[str, Any], dict[str, Any], Form]:
        """The limits of a text, the settings of its sampler, and its form. Raises TypeError for an unknown name."""
        given: dict[str, Any] = dict(sampling)
        form = Form.take(given, schema)
        stop = given.pop("stop", ())
        limits = {"max_tokens": given.pop("max_tokens", None), "stop": [stop] if isinstance(stop, str) else stop}
        if unknown := [name for name in given if name not in SETTINGS]:
            raise TypeError(f"no setting {unknown[0]!r} of sampling; wanted max_tokens, stop, {', '.join(SETTINGS)}")
        return limits, self.sampling | given, form

    @cached_property
    def _template(self) -> ChatTemplate:
        return read_chat_template(self.engine.file, self.tokenizer)

    def _read_template(self, path: Name) -> ChatTemplate:
        return ChatTemplate.compile(text_file.read_text(Path(path)), self.tokenizer, str(path))

    def _pooled(self, pooling: Pooling | None) -> EngineModel:
        """The same model, for vectors or scores of texts; whatever is beside a text, what it gets is the same."""
        self.engine.new_sequence()  # a closed model says so
        key = None if self.engine.config.is_causal else pooling
        if key not in self._engines:
            wanted = {"output": "pooled", "deterministic": True, "pooling": key}
            self._engines[key] = load_model(self.path, **self._options | wanted)
        return self._engines[key]


def load(
    name: Name,
    *,
    context: int | None = None,
    sequences: int = 1,
    batch: int = 512,
    threads: int | Threads | None = None,
    precision: Precision = "int8",
    cache_type_k: CacheType | None = None,
    cache_type_v: CacheType | None = None,
    deterministic: bool = False,
    load_mode: LoadMode = "mmap",
    lora: Sequence[tuple[Name, float]] = (),
) -> Model:
    """Loads a GGUF file, a folder with one, or an id on the Hub such as "org/repo:Q4_K_M", which is downloaded.

    The options are those of `lltool run`: `context` is -c, in tokens (default: the model's own, at most 4096); `batch`
    -b; `threads` -t; `cache_type_k` and `cache_type_v` -ctk and -ctv; `load_mode` -lm. The cache has room for
    `sequences` texts of `context` tokens. `lora` are LoRA adapters with scales: `[("adapter.gguf", 0.5)]`. What was
    chosen where an id left it open is logged as a warning of the logger "lltool". Raises InputError if there is no such
    model, or it cannot be run.

    >>> lltool.load("SmolLM2-135M-Instruct-Q4_1.gguf", context=2048)
    <lltool.Model SmolLM2-135M-Instruct-Q4_1.gguf: llama, Q4_1, context 2048>
    """
    cache = {"cache_type_k": cache_type_k, "cache_type_v": cache_type_v}
    options: dict[str, Any] = {
        "context": context,
        "sequences": sequences,
        "batch": batch,
        "threads": threads,
        "precision": precision,
    }
    options |= {**cache, "deterministic": deterministic, "load_mode": load_mode, "lora": lora}
    return Model(load_model(find(name), output=None, **options), options)
