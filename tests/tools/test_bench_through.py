"""`lltool bench --through`: its options, its files, and what it refuses."""

import json
from pathlib import Path

import pytest

from lltool.tools import cli
from tests.eval.bench.through.stub_server import stub_server


def test_clients_through_two_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timings = {"template_ms": 1.0, "queue_ms": 0.0, "prompt_ms": 0.0, "predicted_ms": 0.0}
    with stub_server(timings=timings) as ours, stub_server() as theirs:
        words = ["bench", "--clients", "1,2", "--through", f"ours={ours.url}/v1", "--peer", f"theirs={theirs.url}"]
        stem = tmp_path / "load"
        assert cli.main([*words, "-pg", "16,4", "-r", "1", "--no-warmup", "--json", "--save", str(stem)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["server"], row["clients"]) for row in rows] == [
        ("ours", 1), ("theirs", 1), ("ours", 2), ("theirs", 2)
    ]  # fmt: skip
    assert [row["template_ms"] for row in rows] == [1.0, None, 1.0, None]
    assert json.loads(stem.with_suffix(".json").read_text()) == rows
    assert stem.with_suffix(".csv").read_text().count("\n") == 5
    assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_tests_are_those_of_the_bench_where_none_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with stub_server() as stub:
        assert cli.main(["bench", "--through", stub.url, "-r", "1", "--no-warmup", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(512, 0), (0, 128)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clients", "8"], "--api-key: want a server, as in --through"),
        (["--long-prompt", "4000", "-m", "a.gguf"], "--api-key: want a server, as in --through"),
        (["--through", "nowhere"], "'nowhere' is not the address of a server"),
        (["--through", "http://127.0.0.1:1", "-m", "a.gguf"], "leave out the model"),
        (["--through", "http://127.0.0.1:1", "-t", "2"], "-t: is for a model in this process"),
        (["--through", "http://127.0.0.1:1", "-d", "64"], "-d: a server says nothing about its cache"),
        (["--through", "http://127.0.0.1:1", "--format", "sql"], "--format sql: has no table"),
        (["--through", "http://a:1", "--peer", "http://a:1"], "two servers are called 'a:1'"),
        (["--through", "http://127.0.0.1:1", "--clients", "0"], "wanted numbers of clients from 1"),
        (["--through", "http://127.0.0.1:1"], "wanted the JSON of an OpenAI-compatible server"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
