"""The trace of a server: valid JSON at any time, with every token of every step, and without texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.server.trace import Trace
from lltool.gguf.errors import InputError
from tests.engine.server.tiny_server import running


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_steps_have_every_token_and_requests_their_times(tiny_path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    body = {"prompt": "abcdefghij" * 3, "max_tokens": 9, "ignore_eos": True, "stream": True}
    with running(tiny_path, trace=trace) as client:
        id = client.post("/v1/completions", json=body).headers["x-request-id"]
        assert client.post("/v1/completions", json={"prompt": 3.5}).status_code == 400
        during = read(trace)
    events = read(trace)
    assert events[: len(during)] == during
    steps = [event for event in events if event["name"] == "step"]
    assert sum(step["args"]["prefilled"] for step in steps) == 30
    assert sum(step["args"]["decoded"] for step in steps) == 8  # the first token comes with the prompt
    assert {text["request"] for step in steps for text in step["args"]["texts"]} == {id}
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")
    parts = ("evaluate", "logits", "sample")
    lengths = {name: [event["dur"] for event in events if event["name"] == name] for name in ("step", *parts)}
    sums = [sum(each) for each in zip(*(lengths[name] for name in parts), strict=True)]
    assert sums == pytest.approx(lengths["step"], abs=1)  # microseconds, which are rounded
    ours = [event for event in events if event.get("id") == id]
    assert [event["name"] for event in ours if event["ph"] == "b"] == [
        "POST /v1/completions", "template", "queue", "prefill", "decode"
    ]  # fmt: skip
    begins, ends = ({e["name"]: e["ts"] for e in ours if e["ph"] == phase} for phase in "be")
    assert begins["POST /v1/completions"] <= begins["template"] <= ends["template"] == begins["queue"]
    assert ends["queue"] == begins["prefill"] < ends["prefill"] == begins["decode"] < ends["decode"]
    assert [event["args"].get("status") for event in events if event["name"].startswith("POST")
            if event["ph"] == "b"] == [200, 400]  # fmt: skip
    assert "abcdefghij" not in trace.read_text()


def test_a_full_trace_says_so_and_stays_valid(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path, 4000)
    record = {"id": "a", "client": "127.0.0.1", "method": "GET", "path": "/health", "status": 200, "seconds": 0.0}
    for _ in range(100):
        trace.request(record, [], 0.0, 0.001)
        assert read(path)
    trace.close()
    trace.close()
    trace.request(record, [], 0.0, 0.001)  # after the end: nothing
    assert path.stat().st_size <= 4000
    assert read(path)[-1]["name"] == "full: 4000 bytes"
    assert "127.0.0.1" not in path.read_text()


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--trace .*cannot be written: No such file"):
        Trace(tmp_path / "none" / "trace.json", 1000)
