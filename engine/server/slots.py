"""POST /slots/{id}?action=save|restore|erase: the state of a slot's last text, in a file of the operator's folder."""

import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.scheduler import Scheduler
from lltool.engine.server.errors import ApiError, bad_request
from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import Fields
from lltool.engine.server.json_body import JsonResponse
from lltool.engine.server.served import Served
from lltool.engine.state_file import StateFile, save_state
from lltool.gguf.errors import InputError

ACTIONS = ("save", "restore", "erase")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class SlotFields(Fields):
    model: str | None = None
    filename: Annotated[
        str, Field(min_length=1, max_length=128, description="a name of letters, digits and ._-; no path")
    ] | None = None  # fmt: skip


async def change_slot(request: Request) -> Response:
    fields = await read_fields(request, SlotFields)
    action = request.query_params.get("action", "")
    if action not in ACTIONS:
        raise bad_request(f"action: {action[:40]!r}, wanted {', '.join(ACTIONS)}", "action")
    with await Exchange.begin(request, fields.model) as exchange:
        served = exchange.served
        served.check_makes("texts")
        slot = _slot(request.path_params["id"], served)
        if action == "erase":
            answer = await _erase(served, slot)
        else:
            path = _path(served, fields.filename)
            answer = await (_save if action == "save" else _restore)(served, slot, path)
        exchange.close()
        return JsonResponse({"id_slot": slot, **answer})


def _slot(given: str, served: Served) -> int:
    most = served.settings.parallel
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) < most):
        raise bad_request(f"slot {given[:40]!r}, wanted a number from 0 to {most - 1}", "id")
    return int(given)


def _path(served: Served, name: str | None) -> Path:
    """The file of this name in the operator's folder. Nothing else of a request becomes part of a path."""
    folder = served.settings.slot_save_path
    if folder is None:
        raise ApiError(501, "this server saves no slots; start it with --slot-save-path", code="unsupported")
    if name is None or not _NAME.fullmatch(name):
        raise bad_request("filename: wanted a name of letters, digits, and ._- but not first a point", "filename")
    return folder / name


async def _save(served: Served, slot: int, path: Path) -> dict[str, Any]:
    start = perf_counter()
    ids = served.runner.slot_text(slot)

    def save(scheduler: Scheduler) -> tuple[int, int]:
        kept = None if ids is None else scheduler.kept_text(ids)
        if kept is None:
            raise bad_request(f"slot {slot} has no text in the cache; nothing is saved", "id")
        return len(kept[0]), save_state(path, served.model, *kept)

    count, size = await _ask(served, save, path)
    times = {"save_ms": 1000 * (perf_counter() - start)}
    return {"filename": path.name, "n_saved": count, "n_written": size, "timings": times}


async def _restore(served: Served, slot: int, path: Path) -> dict[str, Any]:
    start = perf_counter()
    served.runner.slot_text(slot)

    def restore(scheduler: Scheduler) -> tuple[NDArray[np.int32], int]:
        with StateFile(path, served.model) as file:
            scheduler.keep_text(file.ids, file.claim, file.fill)
            return file.ids, file.size

    ids, size = await _ask(served, restore, path)
    served.runner.set_slot_text(slot, ids)
    times = {"restore_ms": 1000 * (perf_counter() - start)}
    return {"filename": path.name, "n_restored": len(ids), "n_read": size, "timings": times}


async def _erase(served: Served, slot: int) -> dict[str, Any]:
    ids = served.runner.slot_text(slot)
    count = 0 if ids is None else await served.runner.ask(lambda scheduler: scheduler.forget_text(ids))
    served.runner.set_slot_text(slot, None)
    return {"n_erased": count}


async def _ask(served: Served, do: Callable[[Scheduler], Any], path: Path) -> Any:
    """Does it in the engine's thread, where other texts wait for it. Raises ApiError; a client sees no folder."""
    try:
        return await served.runner.ask(do)
    except FileNotFoundError:
        raise ApiError(404, f"{path.name}: there is no such file", "filename", "not_found") from None
    except (InputError, OSError) as error:
        reason = error.strerror or "cannot be used" if isinstance(error, OSError) else str(error)
        message = reason.replace(f"{path}: ", "").replace(str(path.parent), "the folder")
        raise bad_request(f"{path.name}: {message}", "filename") from None
