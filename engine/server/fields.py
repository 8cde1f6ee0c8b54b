"""The fields of requests that generate: what pydantic checks, and the OpenAPI document shows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, create_model

from lltool.engine.adapters import Adapter, scales_of
from lltool.engine.sampling import Sampler
from lltool.engine.sampling_settings import SETTINGS, Setting, parse_steps
from lltool.engine.server.errors import ApiError, bad_request
from lltool.engine.server.settings import RequestLimits
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.text.tokenizer import Tokenizer

_WHOLE = (1 << 63) - 1
Count = Annotated[int, Field(ge=0, le=_WHOLE)]
TokenIds = list[Annotated[int, Field(ge=0, le=_WHOLE)]]
Pair = Annotated[list[int | float | str | bool], Field(min_length=2, max_length=2)]


class Fields(BaseModel):
    """The base of all bodies: types are not converted, and fields that nobody knows are ignored."""

    # Built when the first body comes, so that the server starts sooner.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, populate_by_name=True, defer_build=True)


def _kind(about: Setting) -> Any:
    match about.kind:
        case "number":
            return Annotated[float, Field(ge=about.low, le=about.high)]
        case "whole":
            return Annotated[int, Field(ge=about.low, le=about.high)]
        case "seed":
            return Annotated[int, Field(ge=-1, le=_WHOLE)]
        case "flag":
            return bool
        case "steps":
            return list[str] | str
        case "texts":
            return list[str]
        case "biases":
            return dict[str, float] | list[Pair]


def _fields() -> dict[str, Any]:
    """A field for each setting of sampling, by its own name and those that other programs have for it."""
    found: dict[str, Any] = {}
    for name, about in SETTINGS.items():
        alias = AliasChoices(name, *about.names) if about.names else None
        found[name] = (_kind(about) | None, Field(None, validation_alias=alias, description=about.help))
    return found


if TYPE_CHECKING:

    class SamplingFields(Fields):
        """The settings of sampling, each a field; None where the request does not say."""
else:
    SamplingFields = create_model("SamplingFields", __base__=Fields, **_fields())


class AdapterScale(Fields):
    """One of the adapters that the server was started with."""

    id: Annotated[int, Field(ge=0, le=_WHOLE)]
    scale: Annotated[float, Field(ge=-1e6, le=1e6)]


class GenerationFields(SamplingFields):
    """What all requests that generate have."""

    model: Annotated[str, Field(description="the name of a model")] | None = None
    stream: bool | None = None
    stop: Annotated[list[str] | str, Field(description="texts at which the answer ends")] | None = None
    n: Annotated[int, Field(ge=1, le=_WHOLE, description="answers to each prompt")] | None = None
    id_slot: Annotated[int, Field(ge=-1, description="the slot under which the text can be saved; -1: any")] | None = (
        None
    )
    lora: Annotated[list[AdapterScale], Field(description="scales of adapters; others are not applied")] | None = None
    t_max_predict_ms: Annotated[int, Field(ge=0, le=_WHOLE, description="time for the request")] | None = None


def make_samplers(
    fields: SamplingFields, count: int, *, shipped: Mapping[str, Any], tokenizer: "Tokenizer"
) -> list[Sampler]:
    """A sampler for each of `count` texts; a seed of the request counts up. `shipped` are the model's own settings."""
    given = {name: value for name in SETTINGS if (value := getattr(fields, name)) is not None}
    if given.get("seed") == -1:
        del given["seed"]
    if isinstance(given.get("samplers"), str):
        given["samplers"] = _refusable("samplers", lambda: parse_steps(given["samplers"]))
    if isinstance(given.get("logit_bias"), list):
        given["logit_bias"] = _biases(given["logit_bias"], tokenizer)
    settings = {**shipped, **given}
    samplers = []
    for number in range(count):
        seed = {"seed": settings["seed"] + number} if settings.get("seed") is not None else {}
        sampler = _refusable(None, lambda seed=seed: Sampler(**settings | seed))
        _refusable("logit_bias", lambda sampler=sampler: sampler.use(tokenizer))
        samplers.append(sampler)
    return samplers


def _refusable(param: str | None, make: Any) -> Any:
    try:
        return make()
    except (InputError, TypeError) as error:
        raise bad_request(str(error), param) from None


def _biases(pairs: Sequence[Sequence[Any]], tokenizer: "Tokenizer") -> dict[int, float]:
    """llama-server's list: a token's id, or a text whose tokens are meant, and a bias or false for never."""
    found: dict[int, float] = {}
    for place, (token, bias) in enumerate(pairs):
        where = f"logit_bias[{place}]"
        if isinstance(bias, str) or bias is True:
            raise bad_request(f"{where}: wanted a number or false as the bias", "logit_bias")
        if isinstance(token, bool | float):
            raise bad_request(f"{where}: wanted the id of a token or a text", "logit_bias")
        ids = [token] if isinstance(token, int) else tokenizer.encode(token, add_special=False)
        found |= dict.fromkeys(ids, float("-inf") if bias is False else float(bias))
    return found


def adapter_scales(adapters: Sequence[Adapter], wanted: Sequence[AdapterScale]) -> tuple[float, ...]:
    """The scale of each of a model's adapters, 0 where none is wanted. Raises ApiError for ids of no adapter."""
    found = {each.id: each.scale for each in wanted}
    count = len(adapters)
    if unknown := [id for id in found if id >= count]:
        have = f"the ids from 0 to {count - 1}" if count else "no adapters"
        raise bad_request(f"lora: id {unknown[0]}, and this model has {have}", "lora")
    if len(found) < len(wanted):
        raise bad_request("lora: an id appears twice", "lora")
    return scales_of(adapters, [found.get(id, 0.0) for id in range(count)])


def stop_texts(stop: list[str] | str | None, limits: RequestLimits) -> list[str]:
    """The stop strings of a request. Raises ApiError for too many, and for one that is too long."""
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > limits.stops:
        raise bad_request(f"stop: {len(texts)} texts, wanted at most {limits.stops}", "stop")
    if (longest := max(map(len, texts), default=0)) > limits.stop_characters:
        raise bad_request(f"stop: a text of {longest} characters, wanted at most {limits.stop_characters}", "stop")
    return [text for text in texts if text]


def refuse_unsupported(body: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raises ApiError if the body asks for what would change the answer and this server cannot do."""
    for name, why in names.items():
        if body.get(name) not in (None, False, [], {}, ""):
            raise ApiError(400, f"{name}: {why}", name, "unsupported")
