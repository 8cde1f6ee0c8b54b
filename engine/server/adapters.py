"""The scales of LoRA adapters: those of a request, and those of requests that state none."""

from typing import Any

from pydantic import RootModel
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import AdapterScale, adapter_scales
from lltool.engine.server.json_body import JsonResponse


class AdapterScales(RootModel[list[AdapterScale]]):
    """A list of adapters with their scales; the scales of others become 0."""


async def list_adapters(request: Request) -> Response:
    with await Exchange.begin(request, request.query_params.get("model")) as exchange:
        served = exchange.served
        about: list[dict[str, Any]] = [
            {
                "id": adapter.id,
                "path": adapter.path.name,
                "sha256": adapter.digest,
                "rank": adapter.rank,
                "scale": scale,
            }
            for adapter, scale in zip(served.model.adapters, served.scales, strict=True)
        ]
        exchange.close()
        return JsonResponse(about)


async def set_adapters(request: Request) -> Response:
    wanted = await read_fields(request, AdapterScales)
    with await Exchange.begin(request, request.query_params.get("model")) as exchange:
        exchange.served.scales = adapter_scales(exchange.served.model.adapters, wanted.root)
        exchange.close()
        return JsonResponse({"success": True})
