"""Small endpoints: health, models, tokens and templates."""

import asyncio
import time
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.sampling_settings import DEFAULTS, SETTINGS
from lltool.engine.server.chats import TemplateFields, template_arguments
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import Fields, TokenIds
from lltool.engine.server.json_body import JsonResponse
from lltool.engine.server.registry import Registry, Source
from lltool.engine.server.tool_fields import ToolFields, read_tool_use
from lltool.engine.text.chat import TEMPLATE_KEY


class TokenizeFields(Fields):
    model: str | None = None
    content: str = Field(description="the text")
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeFields(Fields):
    model: str | None = None
    tokens: TokenIds


class ModelFields(Fields):
    model: str


class ApplyTemplateFields(TemplateFields, ToolFields):
    model: str | None = None
    add_generation_prompt: bool = True


async def health(request: Request) -> Response:
    return JsonResponse({"status": "ok"})


async def models(request: Request) -> Response:
    registry: Registry = request.app.state.registry
    return JsonResponse({"object": "list", "data": [_model(registry, source) for source in registry.sources]})


async def model(request: Request) -> Response:
    registry: Registry = request.app.state.registry
    name = request.path_params["name"]
    return JsonResponse(_model(registry, registry.find_named(name)))


async def load_model(request: Request) -> Response:
    fields = await read_fields(request, ModelFields)
    registry: Registry = request.app.state.registry
    registry.release(await registry.acquire(registry.find_named(fields.model).name))
    return JsonResponse({"success": True})


async def unload_model(request: Request) -> Response:
    fields = await read_fields(request, ModelFields)
    await request.app.state.registry.unload(fields.model)
    return JsonResponse({"success": True})


def _model(registry: Registry, source: Source) -> dict[str, Any]:
    loaded = next((served for served in registry.loaded if served.name == source.name), None)
    about: dict[str, Any] = {
        "id": source.name,
        "object": "model",
        "created": int(source.path.stat().st_mtime) if source.path.exists() else 0,
        "owned_by": "lltool",
        "aliases": list(source.names[1:]),
        "status": {"value": "loaded" if loaded else "unloaded"},
    }
    if loaded is not None:
        config = loaded.model.config
        about["meta"] = {
            "n_vocab": config.vocab,
            "n_ctx": loaded.model.context,
            "n_ctx_train": config.context_length,
            "n_embd": config.width,
            "size": loaded.model.file.size,
        }
    return about


async def tokenize(request: Request) -> Response:
    fields = await read_fields(request, TokenizeFields)
    with await Exchange.begin(request, fields.model) as exchange:
        tokenizer = exchange.served.tokenizer
        ids = await asyncio.to_thread(
            tokenizer.encode, fields.content, add_special=fields.add_special, parse_special=fields.parse_special
        )
        tokens: list[Any] = list(ids)
        if fields.with_pieces:
            tokens = [{"id": id, "piece": _piece(tokenizer.piece(id))} for id in ids]
        exchange.close()
        return JsonResponse({"tokens": tokens})


def _piece(data: bytes) -> str | list[int]:
    """A token's text or, as llama-server has it, the bytes of one that is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(request: Request) -> Response:
    fields = await read_fields(request, DetokenizeFields)
    with await Exchange.begin(request, fields.model) as exchange:
        tokenizer = exchange.served.tokenizer
        if unknown := [id for id in fields.tokens if id >= tokenizer.size]:
            raise bad_request(f"tokens: token {unknown[0]}, wanted one from 0 to {tokenizer.size - 1}", "tokens")
        text = await asyncio.to_thread(tokenizer.decode, fields.tokens, special=True)
        exchange.close()
        return JsonResponse({"content": text})


async def apply_template(request: Request) -> Response:
    fields = await read_fields(request, ApplyTemplateFields)
    with await Exchange.begin(request, fields.model) as exchange:
        served = exchange.served
        messages, variables = template_arguments(fields, served)
        text = await served.render_chat(
            messages, variables, read_tool_use(fields), add_generation_prompt=fields.add_generation_prompt
        )
        exchange.close()
        return JsonResponse({"prompt": text})


async def props(request: Request) -> Response:
    """What a client wants to know of a model: its template, its context, and its settings of sampling."""
    with await Exchange.begin(request, request.query_params.get("model")) as exchange:
        served = exchange.served
        tokenizer, metadata = served.tokenizer, served.model.file.metadata
        sampling = {name: _plain(DEFAULTS[name]) for name in SETTINGS} | served.shipped
        template = metadata.get(TEMPLATE_KEY)
        has_template = template is not None or served.settings.chat_template is not None
        about = {
            "default_generation_settings": {"n_ctx": served.model.context, "params": sampling},
            "sampling_help": {name: setting.help for name, setting in SETTINGS.items()},
            "total_slots": served.settings.parallel,
            "model_alias": served.name,
            "model_path": served.path.name,
            "modalities": {"vision": False, "video": False, "audio": False},
            "tool_format": (await served.read_format()).name if has_template else "",
            "chat_template": await served.read_template() if has_template else "",
            "bos_token": "" if tokenizer.bos is None else tokenizer.tokens[tokenizer.bos],
            "eos_token": "" if tokenizer.eos is None else tokenizer.tokens[tokenizer.eos],
            "build_info": f"lltool {request.app.state.version}",
            "time": int(time.time()),
        }
        exchange.close()
        return JsonResponse(about)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
