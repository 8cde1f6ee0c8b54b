"""Tests through a server: what is asked, how many at once, and what is made of the answers."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from lltool.eval.bench.settings import Workload
from lltool.eval.bench.through.client import Answer, Client, Server
from lltool.eval.bench.through.load import LoadRun, run_load
from lltool.eval.bench.through.measure import measure_through
from lltool.eval.bench.through.process import ServerProcess, find_process
from lltool.eval.bench.through.prompts import Prompts
from lltool.eval.bench.through.rows import format_served, items, latencies, speed_of_run
from lltool.gguf.errors import InputError
from tests.eval.bench.through.stub_server import HEAD, stub_server


def test_server_is_an_address_with_or_without_a_name() -> None:
    assert Server.parse("http://127.0.0.1:8080/v1/") == Server("http://127.0.0.1:8080", "127.0.0.1:8080")
    found = Server.parse("ours=https://host/proxy", "key")
    assert (found.url, found.name, found.port, found.key) == ("https://host/proxy", "ours", 443, "key")
    assert Server.parse("http://[::1]:9").is_local


@pytest.mark.parametrize("text", ["127.0.0.1:8080", "ftp://host", "http://", "http://host:99999", "http://a?b=c", ""])
def test_other_texts_are_no_servers(text: str) -> None:
    with pytest.raises(InputError, match="not the address of a server"):
        Server.parse(text)


def test_prompts_have_the_tokens_that_are_wanted_and_share_nothing() -> None:
    with stub_server() as stub:
        prompts = Prompts.measure(Server.parse(stub.url))
        assert (prompts.model, prompts.head, prompts.per_word) == ("stub", HEAD, 1)
        bodies = list(prompts.bodies(Workload(64, 5), 3, "seed"))
    texts = [body["messages"][0]["content"] for body in bodies]
    assert [len(text.split()) + HEAD for text in texts] == [64] * 3
    assert len({text.split()[0] for text in texts}) == 3
    assert {body["max_tokens"] for body in bodies} == {5}
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in bodies)


def test_several_clients_send_mixed_lengths_the_same_ones_for_each_server() -> None:
    prompts = Prompts("m", 7.0, 1.0)
    bodies = list(prompts.bodies(Workload(100, 20, sequences=8), 400, "seed"))
    generated = np.array([body["max_tokens"] for body in bodies])
    prompt = np.array([len(body["messages"][0]["content"].split()) + 7 for body in bodies])
    assert (generated.min(), generated.max()) == (10, 30)
    assert 50 <= prompt.min() < 53
    assert 147 < prompt.max() <= 150
    assert abs(prompt.mean() - 100) < 5  # of 400 even draws from 50 to 150, the mean has a deviation of 1.4
    assert bodies == list(prompts.bodies(Workload(100, 20, sequences=8), 400, "seed"))


def test_clients_run_at_once_and_failures_are_counted() -> None:
    with stub_server(refuses=3) as stub:
        server = Server.parse(stub.url)
        bodies = list(Prompts("m", HEAD, 1.0).bodies(Workload(16, 4), 24, "seed"))
        run = run_load(server, bodies, 4)
        assert sorted(map(str, stub.bodies)) == sorted(map(str, bodies))
        assert stub.most_running <= 4
    good = [answer for answer in run.answers if answer.is_good]
    assert (len(run.answers), len(good)) == (24, 21)
    assert {(answer.status, answer.detail) for answer in run.answers if not answer.is_good} == {(503, "busy")}
    assert {(a.prompt_tokens, a.generated_tokens, len(a.pieces), a.text) for a in good} == {(16, 4, 4, "aaaa")}


def test_another_client_keeps_the_server_busy_and_does_not_count() -> None:
    with stub_server() as stub:
        prompts = Prompts("m", HEAD, 1.0)
        bodies = list(prompts.bodies(Workload(16, 2), 50, "seed"))
        run = run_load(Server.parse(stub.url), bodies, 2, beside=lambda n: prompts.body(500, 1, f"long {n}"))
        lengths = [len(body["messages"][0]["content"].split()) for body in stub.bodies]
    assert len(run.answers) == 50
    assert lengths.count(16 - HEAD) == 50
    assert lengths.count(500 - HEAD) == len(lengths) - 50 > 0


def test_an_answer_that_ends_early_is_a_failure_and_a_client_can_leave() -> None:
    with stub_server() as stub:
        client = Client(Server.parse(stub.url))
        body = Prompts("m", HEAD, 1.0).body(16, 9, "seed")
        assert len(client.ask(body, leave_after=2).pieces) == 2
        assert client.ask(body).text == "a" * 9  # by a new connection
        client.close()
    gone = client.ask(body)
    assert (gone.status, gone.is_good) == (0, False)
    assert gone.detail


def test_speed_and_latencies_are_those_of_the_answers() -> None:
    answers = [
        Answer(200, "", "ab", [0.1, 0.2, 0.4], 0.5, 10, 3),
        Answer(200, "", "ab", [0.3, 0.4, 0.5], 0.6, 20, 3),
    ]
    run = LoadRun(answers, 2.0)
    assert speed_of_run(run, Workload(10, 3)) == 3.0
    assert speed_of_run(run, Workload(10, 0)) == 15.0
    found = latencies(answers)
    assert found["first_ms_p50"] == pytest.approx(200)
    assert found["token_ms_p50"] == pytest.approx(100)
    assert found["token_ms_p95"] == pytest.approx(1000 * np.percentile([0.1, 0.2, 0.1, 0.1], 95))
    assert found["total_ms_p95"] == pytest.approx(595)


def test_http_is_what_the_server_does_not_account_for() -> None:
    timings = {"template_ms": 1.0, "queue_ms": 2.0, "prompt_ms": 30.0, "predicted_ms": 60.0}
    found = items([Answer(200, seconds=0.1, timings=timings), Answer(200, seconds=0.2, timings=timings)])
    assert found == pytest.approx(
        {"http_ms": 57.0, "template_ms": 1.0, "queue_ms": 2.0, "prefill_ms": 30.0, "decode_ms": 60.0}
    )
    assert items([Answer(200, seconds=0.1, timings={"prompt_ms": 1.0})]) == {}


def test_servers_run_in_turns_and_the_others_are_compared_with_the_first() -> None:
    with stub_server() as first, stub_server() as second:
        servers = [Server.parse(f"a={first.url}"), Server.parse(f"b={second.url}")]
        tests = [Workload(32, 0), Workload(16, 4, sequences=3)]
        rows = measure_through(servers, tests, rounds=2, requests=2)
        assert [body for body in first.streamed if body not in second.streamed] == []
    assert [(row.server, row.test, row.clients, row.requests) for row in rows] == [
        ("a", "pp32", 1, 4),
        ("b", "pp32", 1, 4),
        ("a", "pp16+tg4", 3, 12),
        ("b", "pp16+tg4", 3, 12),
    ]
    assert [row.ratio is None for row in rows] == [True, False, True, False]
    assert rows[0].prompt_tokens == 32
    for row, other in (rows[:2], rows[2:]):
        assert other.ratio is not None
        pairs = np.array(row.samples_ts) / np.array(other.samples_ts)
        assert other.ratio == pytest.approx(np.median(pairs))
    assert json.loads(format_served(rows, "json"))[2]["generated_tokens"] == rows[2].generated_tokens
    assert format_served(rows, "csv").count("\n") == 4
    assert "pp16+tg4" in format_served(rows, "md")


def test_a_server_that_refuses_everything_is_an_error() -> None:
    with stub_server(refuses=1000) as stub, pytest.raises(InputError, match=r"no request of pp8 .*503, busy"):
        measure_through([Server.parse(stub.url)], [Workload(8, 0)], rounds=1)
    with pytest.raises(InputError, match="wanted the JSON of an OpenAI-compatible server"):
        measure_through([Server.parse(stub.url)], [Workload(8, 0)], rounds=1)


def test_a_server_without_counts_has_its_pieces_counted() -> None:
    with stub_server() as stub:
        stub.counts = False
        (row,) = measure_through([Server.parse(stub.url)], [Workload(0, 4)], rounds=1)
        assert row.generated_tokens == 4
        with pytest.raises(InputError, match="streamed answers to pp8 count no tokens"):
            measure_through([Server.parse(stub.url)], [Workload(8, 0)], rounds=1)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="wants Linux's /proc")
def test_the_process_behind_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = find_process(port)
        assert found is not None
        assert found.id == os.getpid()
        before = found.processor_seconds()
        sum(range(3_000_000))
        assert found.processor_seconds() >= before > 0
    assert find_process(port) is None


def test_processor_time_is_that_of_the_process_and_what_it_started(tmp_path: Path) -> None:
    times = {1: (0, 9000), 7: (1, 100), 8: (7, 20), 9: (8, 3), 10: (1, 5000)}
    for process, (parent, ticks) in times.items():
        (tmp_path / str(process)).mkdir()
        fields = ["S", str(parent), *["0"] * 9, str(ticks), "1", "2", "4"]
        (tmp_path / str(process) / "stat").write_text(f"{process} (a (b) c) {' '.join(fields)}")
    assert ServerProcess(7, tmp_path).processor_seconds() == (100 + 20 + 3 + 3 * 7) / os.sysconf("SC_CLK_TCK")
