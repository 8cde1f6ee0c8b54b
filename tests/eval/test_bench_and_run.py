"""The bench's figure is what generation reaches, once what it costs to choose and print tokens is taken off."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from lltool.engine.generate import Dialogue, Generation
from lltool.engine.sampling import Sampler
from lltool.eval.bench.plan import Settings, Workload, resolve
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.statistics import DRIFT_GUESS, Summary, agree, summarize
from lltool.eval.bench.watch import Watch

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

    def state(name: str) -> Summary:
        speeds, disturbances = zip(*found[name], strict=True)
        return summarize(speeds, drift=DRIFT_GUESS["virtual"], disturbance=median(disturbances))

    assert agree(state("bench"), state("run")), found
    runner.close()
