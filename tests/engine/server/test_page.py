"""The web page: its headers, its files, and that it has words for everything that the server offers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lltool.engine.sampling_settings import SETTINGS
from lltool.engine.server.app import PAGE
from lltool.engine.server.page_files import HEADERS
from tests.engine.server.tiny_server import running

SOURCE = Path(__file__).parents[3] / "engine/server/page/src"
FILES = sorted(path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def page(tiny_path: Path) -> Iterator[TestClient]:
    with running(tiny_path, page=PAGE, api_keys=["secret"]) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/assets/index.js", "text/javascript; charset=utf-8"),
        ("/assets/index.css", "text/css; charset=utf-8"),
        ("/assets/KaTeX_Main-Regular.woff2", "font/woff2"),
        ("/icon.svg", "image/svg+xml"),
    ],
)
def test_files_come_with_the_policy_and_without_a_key(page: TestClient, path: str, type: str) -> None:
    response = page.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == type
    assert {name: response.headers[name] for name in HEADERS} == HEADERS
    file = PAGE / ("index.html" if path == "/" else path[1:])
    assert response.content == file.read_bytes()


def test_types_do_not_depend_on_the_system(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlette.responses.guess_type", lambda path: ("text/plain", None))
    assert page.get("/assets/index.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert page.get("/").headers["content-type"] == "text/html; charset=utf-8"


def test_the_policy_lets_nothing_in() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    sources = {name: value for name, value in policy.items() if name.endswith("-src") and name != "default-src"}
    assert set(sources.values()) == {"'self'"}


def test_a_file_that_is_known_is_not_sent_again(page: TestClient) -> None:
    tag = page.get("/assets/index.js").headers["etag"]
    response = page.get("/assets/index.js", headers={"If-None-Match": tag})
    assert response.status_code == 304
    assert response.content == b""


@pytest.mark.parametrize("path", ["/%2e%2e/app.py", "/assets/..%2f..%2fpackage.json", "/package.json", "/src"])
def test_no_other_file_is_served(page: TestClient, path: str) -> None:
    response = page.get(path, headers={"Authorization": "Bearer secret"})
    assert response.status_code == 404


def test_the_interface_wants_the_key_that_the_page_asks_for(page: TestClient) -> None:
    assert page.get("/v1/models").status_code == 401
    assert page.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_what_is_built_loads_nothing_from_other_hosts() -> None:
    """A link to follow, a name of XML and a license are only texts. What a browser loads stands in these places."""
    index = (PAGE / "index.html").read_text()
    assert [url for url in re.findall(r'(?:src|href)="([^"]*)"', index) if not url.startswith("./")] == []
    assert "<style" not in index
    assert re.findall(r"<script(?![^>]* src=)", index) == []
    for path in PAGE.rglob("*.css"):
        text = path.read_text()
        assert "@import" not in text
        urls = re.findall(r"url\(([^)]*)\)", text)
        assert [url for url in urls if not (path.parent / url.strip("\"'")).is_file()] == [], path.name
    for path in PAGE.rglob("*.js"):
        text = path.read_text()
        loads = r"""(?:import\(|fetch\(|from|importScripts\(|new Worker\(|\.src=)\s*["'`](?:https?:)?//"""
        assert re.findall(loads, text) == [], path.name


def test_what_is_built_is_small() -> None:
    assert sum((PAGE / name).stat().st_size for name in FILES) < 1_500_000
    assert {Path(name).suffix for name in FILES} == {".html", ".js", ".css", ".svg", ".woff2", ".md"}


def test_languages_have_the_same_keys() -> None:
    english, chinese = (json.loads((SOURCE / f"language/{name}.json").read_text()) for name in ("en", "zh"))
    assert list(english) == list(chinese)


def test_every_sampler_is_a_setting_of_the_page() -> None:
    page = {each["name"]: each for each in json.loads((SOURCE / "data/settings.json").read_text())}
    assert set(page) - set(SETTINGS) == {"max_tokens", "stop"}
    words = json.loads((SOURCE / "language/en.json").read_text())
    for name, setting in SETTINGS.items():
        assert page[name]["kind"] == setting.kind, name
        if setting.kind in ("number", "whole"):
            assert (page[name]["low"], page[name]["high"]) == (setting.low, setting.high), name
        assert words[f"setting.{name}"]
        assert words[f"setting.{name}.help"]
