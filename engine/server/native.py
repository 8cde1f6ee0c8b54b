"""llama-server's own endpoints: /completion and /infill."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.sampling_settings import SETTINGS
from lltool.engine.server.answer import Answer, read_answers, timings
from lltool.engine.server.chats import Tokens, most_tokens
from lltool.engine.server.constraints import ResponseFormatFields
from lltool.engine.server.errors import ApiError
from lltool.engine.server.exchange import Exchange, event, read_fields
from lltool.engine.server.fields import Fields, GenerationFields, TokenIds
from lltool.engine.server.openai_chat import token_score
from lltool.engine.server.openai_completions import encode_prompts
from lltool.engine.server.served import Scores, Served

_UNSUPPORTED = {
    "image_data": "this server reads text only",
}
# The control tokens of filling in, by their key and by the names that vocabularies have for them.
_INFILL = {
    "pre": ("prefix", "<|fim_prefix|> <fim-prefix> <fim_prefix> <PRE> ▁<PRE> <｜fim▁begin｜> <|code_prefix|>"),
    "suf": ("suffix", "<|fim_suffix|> <fim-suffix> <fim_suffix> <SUF> ▁<SUF> <｜fim▁hole｜> <|code_suffix|>"),
    "mid": ("middle", "<|fim_middle|> <fim-middle> <fim_middle> <MID> ▁<MID> <｜fim▁end｜> <|code_middle|>"),
    "pad": ("", "<|fim_pad|> <fim-pad> <fim_pad> <PAD>"),
    "rep": ("", "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    "sep": ("", "<|file_sep|>"),
}


class NativeFields(GenerationFields, ResponseFormatFields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = _UNSUPPORTED

    n_predict: Tokens | None = Field(None, validation_alias=AliasChoices("n_predict", "max_tokens"))
    n_probs: Annotated[int, Field(ge=0)] | None = None
    return_tokens: bool | None = None


class NativeCompletionFields(NativeFields):
    prompt: str | TokenIds | list[str] | list[TokenIds] = Field(description="texts or token ids to continue")


class ExtraFile(Fields):
    text: str
    filename: str = ""


class InfillFields(NativeFields):
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[ExtraFile] = Field(default_factory=list)
    prompt: str = Field("", description="the text right before the gap")


async def completion(request: Request) -> Response:
    fields = await read_fields(request, NativeCompletionFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await _answer(exchange, await encode_prompts(exchange.served, fields.prompt), fields)


async def infill(request: Request) -> Response:
    fields = await read_fields(request, InfillFields)
    with await Exchange.begin(request, fields.model) as exchange:
        tokens = infill_tokens(exchange.served)
        ends = frozenset(tokens.values())
        return await _answer(exchange, [_infill_prompt(exchange.served, fields, tokens)], fields, ends)


def infill_tokens(served: Served) -> dict[str, int]:
    """The control tokens of filling in. Raises ApiError if the vocabulary lacks one of the first three."""
    served.check_makes("texts")
    tokenizer, metadata = served.tokenizer, served.model.file.metadata
    by_text = {text: id for id, text in enumerate(tokenizer.tokens) if tokenizer.is_control(id) or text[:1] in "<▁"}
    found = {}
    for name, (other, texts) in _INFILL.items():
        keys = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in (f"fim_{name}", other) if key]
        ids = [int(key.data) for key in keys if key is not None] + [by_text[t] for t in texts.split() if t in by_text]
        if ids and 0 <= ids[0] < tokenizer.size:
            found[name] = ids[0]
    if missing := {"pre", "suf", "mid"}.difference(found):
        raise ApiError(501, f"the model has no token for filling in ({', '.join(sorted(missing))})", code="unsupported")
    return found


def _infill_prompt(served: Served, fields: InfillFields, tokens: Mapping[str, int]) -> list[int]:
    """Other files, the text before the gap and the text after it; what comes next is the text of the gap."""

    def plain(text: str) -> list[int]:
        return served.tokenizer.encode(text, add_special=False)

    ids: list[int] = []
    if fields.input_extra and {"rep", "sep"} <= tokens.keys():
        ids += [tokens["rep"], *plain("myproject\n")]
    for extra in fields.input_extra:
        if "sep" in tokens:
            ids += [tokens["sep"], *plain(f"{extra.filename or 'tmp'}\n{extra.text}")]
        else:
            ids += plain(f"{extra.text}\n")
    if fields.input_extra and "sep" in tokens:
        ids += [tokens["sep"], *plain("filename\n")]
    ids += [tokens["pre"], *plain(fields.input_prefix + fields.prompt), tokens["suf"], *plain(fields.input_suffix)]
    return served.tokenizer.with_begin([*ids, tokens["mid"]])


async def _answer(
    exchange: Exchange, prompts: Sequence[Sequence[int]], fields: NativeFields, ends: frozenset[int] = frozenset()
) -> Response:
    scores = Scores(fields.n_probs) if fields.n_probs else None
    matcher = await exchange.served.matcher(fields.constraint())
    jobs = exchange.served.make_jobs(prompts, fields, most_tokens(fields.n_predict), scores, ends=ends, matcher=matcher)
    exchange.submit(jobs)
    answers = [_Native(exchange.served, Answer(job, index), fields) for index, job in enumerate(jobs)]
    if fields.stream:
        return exchange.stream(_events(answers))
    return await exchange.answer(_collect(answers))


async def _collect(answers: "list[_Native]") -> Any:
    async for answer, delta in read_answers([each.answer for each in answers]):
        answers[answer.index].tokens += delta.ids
    whole = [each.whole() for each in answers]
    return whole if len(whole) > 1 else whole[0]


async def _events(answers: "list[_Native]") -> AsyncIterator[bytes]:
    async for answer, delta in read_answers([each.answer for each in answers]):
        native = answers[answer.index]
        if delta.content or delta.scores:
            yield event({**native.part(delta.content, delta.ids), **native.probabilities(delta.scores)})
        if delta.is_last:
            yield event({**native.whole(), "content": "", "tokens": [], "completion_probabilities": []})


class _Native:
    """One answer in llama-server's form."""

    def __init__(self, served: Served, answer: Answer, fields: NativeFields) -> None:
        self.served, self.answer, self.fields = served, answer, fields
        self.tokens: list[int] = []

    def part(self, content: str, tokens: Sequence[int], *, stop: bool = False) -> dict[str, Any]:
        job = self.answer.job
        return {
            "index": self.answer.index,
            "content": content,
            "tokens": list(tokens) if self.fields.return_tokens or not stop else [],
            "stop": stop,
            "id_slot": job.slot,
            "tokens_predicted": job.timings.tokens,
            "tokens_evaluated": job.prompt_tokens,
        }

    def probabilities(self, scores: Sequence[Any]) -> dict[str, Any]:
        if not self.fields.n_probs:
            return {}
        return {"completion_probabilities": [token_score(self.served.tokenizer, score) for score in scores]}

    def whole(self) -> dict[str, Any]:
        job, sampler = self.answer.job, self.answer.job.sampler
        stop_type = "limit" if job.reason == "length" else "eos" if job.ended_by_token else "word"
        settings = {name: getattr(sampler, name) for name in SETTINGS}
        settings["logit_bias"] = [[id, bias if abs(bias) < 1e9 else False] for id, bias in sampler.logit_bias.items()]
        return {
            **self.part(self.answer.content, self.tokens, stop=True),
            **self.probabilities(self.answer.scores),
            "model": self.served.name,
            "stop_type": stop_type,
            "stopping_word": job.stopping_word,
            "truncated": False,
            "has_new_line": "\n" in self.answer.content,
            "tokens_cached": job.timings.cached,
            "generation_settings": {**settings, "n_predict": -1 if job.most is None else job.most},
            "timings": timings(job),
        }
