"""The OpenAPI document is true: requests made from it, good and bad, get the answers that it names and never a 500."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lltool.engine.sampling_settings import SETTINGS as SAMPLING
from lltool.engine.server.app import make_app
from lltool.engine.server.registry import Registry, Source
from lltool.engine.server.settings import RequestLimits
from tests.engine.server.tiny_server import SETTINGS, write_tiny


def no_fault(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """501 and 503 are answers, 500 is not."""
    assert response.status_code != 500, response.text


CHECKS = [no_fault, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starlette]:
    """A server whose answers are short, whatever is asked for."""
    path = write_tiny(tmp_path_factory.mktemp("openapi") / "tiny.gguf")
    limits = RequestLimits(choices=2, seconds=0.2, inputs=4)
    chosen = replace(SETTINGS, allowed_hosts=["testserver"], limits=limits, load={**SETTINGS.load, "context": 64})
    registry = Registry([Source(path, ("tiny",))], chosen)
    registry.load_now(registry.sources[0])
    yield make_app(registry, chosen)
    registry.close()


def test_the_document_has_every_route_and_setting(app: Starlette) -> None:
    document = TestClient(app, base_url="http://127.0.0.1").get("/openapi.json").json()
    paths = {getattr(route, "path", "").replace("{name:path}", "{name}") for route in app.routes}
    assert set(document["paths"]) == paths - {"/openapi.json"}
    chat = document["components"]["schemas"]["ChatFields"]
    assert chat["required"] == ["messages"]
    assert set(SAMPLING) <= set(chat["properties"])
    assert chat["properties"]["top_p"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}


def ask_all(app: Starlette, examples: int) -> int:
    """Sends requests made from the document to each operation, good and bad ones; returns their number."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        cases = st.one_of(*(operation.as_strategy(mode) for mode in schemathesis.GenerationMode))

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def ask(case: schemathesis.Case) -> None:
            nonlocal count
            count += 1
            case.call_and_validate(checks=CHECKS)

        ask()
    return count


@pytest.mark.slow
def test_requests_made_from_the_document(app: Starlette) -> None:
    assert ask_all(app, 12) > 100
