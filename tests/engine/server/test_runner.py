"""What the engine's thread does when a step fails, and when it is to end."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.request import Limits
from lltool.engine.sampling import Sampler
from lltool.engine.server.errors import ApiError
from lltool.engine.server.job import Job, read_pieces
from lltool.engine.server.served import Served
from tests.engine.server.tiny_server import SETTINGS, write_tiny


@pytest.fixture
def served(tiny_path: Path) -> Iterator[Served]:
    served = Served.load("tiny", tiny_path, SETTINGS)
    yield served
    served.close()


def make_job(served: Served, **more: Any) -> Job:
    return Job(
        [1, 2, 3],
        tokenizer=served.tokenizer,
        context=served.model.context,
        sampler=Sampler(temperature=0, ignore_eos=True),
        limits=Limits(more.pop("most", 5), more.pop("stop", ())),
        inbox=asyncio.Queue(),
        **more,
    )


async def finish(job: Job) -> str:
    return "".join([piece.token.text async for _, piece in read_pieces([job]) if piece is not None])


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_a_failed_step_ends_its_requests_and_not_the_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(served.model, "forward", lambda pieces: 1 / 0)
            job = make_job(served)
            served.runner.submit([job])
            await finish(job)
        assert (job.reason, job.detail) == ("error", "division by zero")
        job = make_job(served)
        served.runner.submit([job])
        assert len(await finish(job)) == 5

    run(scenario())


def test_a_changed_file_is_an_error_without_its_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = write_tiny(tmp_path / "tiny.gguf")
        served = Served.load("tiny", path, SETTINGS)
        try:
            with path.open("ab") as file:
                file.write(b"0")
            job = make_job(served)
            served.runner.submit([job])
            await finish(job)
        finally:
            served.close()
        assert job.reason == "error"
        assert job.detail.startswith("tiny.gguf: changed while it was read")

    run(scenario())


def test_what_is_held_back_comes_out_when_the_time_is_over(served: Served) -> None:
    """Every text of the model could begin the stop string, so that all of it is held back."""

    async def scenario() -> None:
        plain = make_job(served)
        served.runner.submit([plain])
        text = await finish(plain)
        held = make_job(served, most=200, stop=[text + "\0"])
        with served.model.turn():
            served.runner.submit([held])
            while served.runner.jobs and not held.started > held.submitted:
                await asyncio.sleep(0.001)  # it is in a step now, which waits for its turn
            held.deadline = 0.0
        found = await finish(held)
        assert held.reason == "length"
        assert held.timings.tokens == 1
        assert found == text[0]

    run(scenario())


def test_a_runner_that_closes_ends_what_runs_and_takes_no_more(served: Served) -> None:
    async def scenario() -> None:
        with served.model.turn():
            job = make_job(served, most=200)
            served.runner.submit([job])
            closing = asyncio.get_running_loop().run_in_executor(None, served.runner.close)
            while not served.runner._is_closing:
                await asyncio.sleep(0.001)
            with pytest.raises(ApiError, match="stopping"):
                served.runner.submit([make_job(served)])
        await closing
        await finish(job)
        assert job.reason == "cancelled"
        assert served.model.free_pages == served.model.setup.pages

    run(scenario())
