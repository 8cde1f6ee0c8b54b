"""The front door to measuring speed: `lltool.bench`."""

from collections.abc import Iterable, Sequence
from typing import Any

from lltool.engine.cpu.threads import Threads
from lltool.eval.bench.results.rows import Results
from lltool.eval.bench.results.tables import format_rows
from lltool.eval.bench.run.measure import measure_points
from lltool.eval.bench.run.plan import plan_points, unmet_of, workloads
from lltool.eval.bench.run.schedule import Effort
from lltool.eval.bench.settings import SETTINGS
from lltool.gguf.errors import InputError
from lltool.tools.api.inputs import Name, find, warn
from lltool.tools.api.model import Model


class BenchResult(Results):
    """The rows of a benchmark; `str()` is the table of `lltool bench`. Speeds are tokens a second."""

    def __str__(self) -> str:
        return format_rows(self, "md")

    __repr__ = __str__


def bench(
    models: "Model | Name | Iterable[Model | Name]",
    *,
    n_prompt: int | Sequence[int] = 512,
    n_gen: int | Sequence[int] = 128,
    n_depth: int | Sequence[int] = 0,
    n_parallel: int | Sequence[int] = (),
    repetitions: int = 5,
    memory: bool = True,
    **settings: Any,
) -> BenchResult:
    """Measures how fast models read `n_prompt` tokens at once, and generate `n_gen` tokens, after `n_depth` tokens.

    Numbers can be lists; all combinations are measured in turns, `repetitions` times. With `n_parallel`, so many texts
    advance at once, and each has a prompt and then generates. `settings` are the fields of
    lltool.eval.bench.settings.Settings, such as `threads`, `ubatch`, `type_k` and `precision`, or lists of them. A
    model that is loaded is measured in its file, anew, with its precision, the types of its cache and its number of
    threads. With `memory`, peak memory and load times are measured too, in processes of their own. Nothing is added to
    the history of `lltool bench`. Raises InputError for what cannot be measured, before anything is timed.

    >>> result = lltool.bench(model, n_prompt=16, n_gen=4, repetitions=2, memory=False)
    >>> list(result.to_pandas()["n_prompt"]), [row.test for row in result]
    ([16, 0], ['pp16', 'tg4'])
    """
    given: list[Model | Name] = list(models) if _are_several(models) else [models]  # type: ignore[arg-type, list-item]
    known = [setting.name for setting in SETTINGS]
    if unknown := [name for name in settings if name not in known]:
        raise InputError(f"no setting {unknown[0]!r}, wanted one of {', '.join(known)}")
    axes = {name: _values(value) for name, value in settings.items()}
    runs = workloads(_values(n_prompt), _values(n_gen), (), _values(n_depth), _values(n_parallel))
    points = []
    for model in given:
        own = _settings_of(model) if isinstance(model, Model) else {}
        path = model.path if isinstance(model, Model) else find(model)
        points += plan_points([path], runs, **own | axes)
    for unmet in unmet_of(points):
        warn(unmet)
    return BenchResult(measure_points(points, Effort(repetitions), memory=memory))


def _are_several(models: object) -> bool:
    return isinstance(models, Iterable) and not isinstance(models, str)


def _settings_of(model: Model) -> dict[str, Sequence[Any]]:
    setup = model.engine.setup
    own: dict[str, Sequence[Any]] = {
        "precision": [setup.precision],
        "type_k": [setup.cache_type_k],
        "type_v": [setup.cache_type_v],
    }
    count = setup.threads.decode.threads
    return own | {"threads": [count]} if setup.threads == Threads.of(count) else own


def _values(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
