"""Runs tests through servers in turns, A B and then B A, so that what else the machine does meets all of them alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.bench.settings import Workload
from lltool.eval.bench.through.client import Answer, Server
from lltool.eval.bench.through.load import LoadRun, run_load
from lltool.eval.bench.through.process import ServerProcess, find_process
from lltool.eval.bench.through.prompts import Prompts
from lltool.eval.bench.through.rows import (
    ServedRow,
    items,
    latencies,
    processor_ms,
    speed_of_run,
)
from lltool.eval.common.steps import TitledProgress
from lltool.gguf.errors import InputError

_REQUESTS = 4  # of each client in a run
_LONG_ANSWER = 1  # tokens that follow a long prompt, which is there to be read


@dataclass
class _Subject:
    """A server with what is measured of it: a list of runs for each test."""

    server: Server
    prompts: Prompts
    process: ServerProcess | None
    runs: list[list[LoadRun]] = field(default_factory=list)


def measure_through(
    servers: Sequence[Server],
    tests: Sequence[Workload],
    *,
    rounds: int = 5,
    requests: int = _REQUESTS,
    long_prompt: int = 0,
    warm: bool = True,
    seed: int = 0,
    machine: Mapping[str, Any] | None = None,
    progress: TitledProgress | None = None,
) -> list[ServedRow]:
    """A row of each test and server; the ratios of the others' rows refer to the first server.

    The `sequences` of a test are its clients, each with so many requests in a round. With `long_prompt`, one more
    client sends prompts of so many tokens meanwhile, which do not count; processor times are then not known. Raises
    InputError for a server that does not answer, and for a test of which no request was answered.
    """
    if any(test.depth for test in tests):
        raise InputError("-d: a server says nothing about its cache; leave it out, or give longer prompts with -p")
    subjects = [
        _Subject(server, Prompts.measure(server), find_process(server.port) if server.is_local else None)
        for server in servers
    ]
    for subject in subjects:
        subject.runs = [[] for _ in tests]
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    total, done = (rounds + warm) * len(tests), 0
    for turn in range(-warm, rounds):
        for number, test in enumerate(tests):
            if progress:
                progress(done, total, f"{test}" + ("" if turn >= 0 else ": first run, which does not count"))
            for subject in subjects if turn % 2 == 0 else subjects[::-1]:
                run = _run(subject, test, requests if turn >= 0 else 1, long_prompt, f"{seed} {turn} {number}")
                if turn >= 0:
                    subject.runs[number].append(run)
            done += 1
    if progress:
        progress(total, total, "")
    return [
        _row(subject, subjects[0], number, test, started, machine or {})
        for number, test in enumerate(tests)
        for subject in subjects
    ]


def _run(subject: _Subject, test: Workload, requests: int, long_prompt: int, seed: str) -> LoadRun:
    bodies = list(subject.prompts.bodies(test, test.sequences * requests, seed))

    def beside(number: int) -> dict[str, Any]:
        return subject.prompts.body(long_prompt, _LONG_ANSWER, f"{seed} long {number}")

    others, process = (beside, None) if long_prompt else (None, subject.process)
    run, url = run_load(subject.server, bodies, test.sequences, beside=others, process=process), subject.server.url
    if not any(answer.is_good for answer in run.answers):
        answer = run.answers[0]
        raise InputError(f"{url}: no request of {test} was answered: status {answer.status}, {answer.detail}")
    if not speed_of_run(run, test):
        raise InputError(f"{url}: its streamed answers to {test} count no tokens; wanted usage as stream_options asks")
    return run


def _row(
    subject: _Subject, first: _Subject, number: int, test: Workload, started: str, machine: Mapping[str, Any]
) -> ServedRow:
    runs = subject.runs[number]
    answers = [answer for run in runs for answer in run.answers]
    good = [answer for answer in answers if answer.is_good]
    speeds = [speed_of_run(run, test) for run in runs]
    seconds, count = sum(run.seconds for run in runs), max(1, len(good))
    prompt, generated = (sum(getattr(a, name) for a in good) for name in ("prompt_tokens", "generated_tokens"))
    summary, cost, ratio = summarize_samples(speeds), processor_ms(runs, test), None
    first_cost = processor_ms(first.runs[number], test)
    if subject is not first:
        pairs = zip(first.runs[number], runs, strict=True)
        ratio = summarize_samples([speed_of_run(ours, test) / speed_of_run(theirs, test) for ours, theirs in pairs])
    return ServedRow(
        server=subject.server.name,
        url=subject.server.url,
        model=subject.prompts.model,
        n_prompt=test.prompt,
        n_gen=test.generation,
        clients=test.sequences,
        test_time=started,
        requests=len(answers),
        failed=len(answers) - len(good),
        prompt_tokens=prompt / count,
        generated_tokens=generated / count,
        prompt_ts=prompt / seconds,
        generated_ts=generated / seconds,
        median_ts=summary.median,
        low_ts=summary.low,
        high_ts=summary.high,
        ratio=ratio.median if ratio else None,
        ratio_low=ratio.low if ratio else None,
        ratio_high=ratio.high if ratio else None,
        **latencies(good),
        processor_ms=cost,
        processor_ratio=cost / first_cost if ratio and cost and first_cost else None,
        **items(good),
        samples_ts=speeds,
        notes=_notes(subject, test, answers, prompt / count, generated / count),
        machine=dict(machine),
    )


def _notes(subject: _Subject, test: Workload, answers: Sequence[Answer], prompt: float, generated: float) -> list[str]:
    name = f"{test}, {subject.server.name}"
    notes = []
    if failed := [answer for answer in answers if not answer.is_good]:
        notes.append(
            f"{name}: {len(failed)} of {len(answers)} failed, first with {failed[0].status} {failed[0].detail}"
        )
    if test.prompt and abs(prompt / test.prompt - 1) > 0.02 and test.sequences == 1:
        notes.append(f"{name}: the prompts had {prompt:.0f} tokens")
    if test.generation and generated < 0.9 * test.generation:
        notes.append(f"{name}: the answers had {generated:.0f} tokens, as the server ends them early")
    return notes
