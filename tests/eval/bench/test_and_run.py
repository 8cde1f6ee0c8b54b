"""The bench's speed equals that of generation without the cost of sampling and printing tokens."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from lltool.engine.generate import Dialogue, Generation
from lltool.engine.sampling import Sampler
from lltool.eval.bench.machine.watch import Watch
from lltool.eval.bench.results.statistics import DRIFT_GUESS, SampleSummary, agree, summarize_samples
from lltool.eval.bench.run.plan import resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.settings import Settings, Workload

PROMPT, TOKENS = 32, 32


@pytest.mark.slow
def test_bench_and_generation_agree(real_model: Callable[[str], Path]) -> None:
    settings = resolve(Settings(real_model("smollm2-q4_1"), threads=1))
    workload = Workload(0, TOKENS, depth=PROMPT)
    runner, watch = Runner(settings, [workload, Workload(4 * (PROMPT + TOKENS), 0)]), Watch(1)
    dialogue = Dialogue(runner.model)  # in the cache that is left
    found: dict[str, list[tuple[float, float]]] = {"bench": [], "run": []}  # tokens a second, disturbance

    for _ in range(9):
        watch.start()
        speed = TOKENS * 1e9 / runner.run(workload).nanoseconds
        found["bench"].append((speed, watch.stop().disturbance))
        generation = Generation(dialogue, range(PROMPT), Sampler(seed=0), TOKENS + 1)
        next(generation)
        watch.start()
        assert list(generation)
        found["run"].append((generation.timings.evaluate_rate, watch.stop().disturbance))

    def state(name: str) -> SampleSummary:
        speeds, disturbances = zip(*found[name], strict=True)
        return summarize_samples(speeds, drift=DRIFT_GUESS["virtual"], disturbance=median(disturbances))

    assert agree(state("bench"), state("run")), found
    runner.close()
