"""The native sampler checks its arguments, and settings that make no sense do no harm."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from lltool.engine.cpu import _native
from lltool.engine.sampling import Sampler
from lltool.engine.sampling_settings import SETTINGS


def chain(**changes: Any) -> _native.SampleChain:
    defaults = Sampler(temperature=0)
    values = {name: getattr(defaults, name) for name, about in SETTINGS.items() if about.kind in ("number", "whole")}
    return _native.SampleChain(**{"order": "kpmt", "biases": [], "breakers": [], **values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": np.ones((3, 40), np.float32)}, "sample: shapes do not agree"),
        ({"logits": np.ones((2, 0), np.float32)}, "sample: wanted rows of logits"),
        ({"chains": [None]}, "sample: shapes do not agree"),
        ({"draws": [0.0] * 3}, "sample: shapes do not agree"),
        ({"draws": [0.0, 0.0, 1.5, 0.0]}, "sample: draws are 0 to 1"),
        ({"draws": [0.0, 0.0, np.nan, 0.0]}, "sample: draws are 0 to 1"),
        ({"texts": [None]}, "sample: shapes do not agree"),
        ({"masks": [None]}, "sample: shapes do not agree"),
        ({"masks": [None, np.ones(1, np.uint32)]}, "sample: wanted a bit of a mask for each token"),
        ({"team": []}, "a team has at least one thread"),
        ({"team": [[-1]]}, "processors have numbers from 0"),
        ({"poll": 101}, "poll is 0 to 100"),
        ({"isa": "mmx"}, "mmx"),
    ],
)
def test_rows_to_sample_are_checked(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "isa": "scalar",
        "logits": np.eye(2, 40, dtype=np.float32),
        "chains": [chain(), chain()],
        "draws": [0.0] * 4,
        "texts": [None, np.zeros(3, np.int32)],
        "masks": [None, np.full(2, 0xFFFFFFFF, np.uint32)],
        "team": [[], []],
        "poll": 0,
    }
    assert _native.sample(**arguments) == [0, 1]
    with pytest.raises(ValueError, match=message):
        _native.sample(**arguments | changes)


def test_a_row_without_a_chain_is_left_out() -> None:
    rows = np.eye(2, 40, k=5, dtype=np.float32)
    arguments: dict[str, Any] = {"texts": [], "masks": [], "team": None, "poll": 0, "draws": [0.0] * 4}
    assert _native.sample(isa="scalar", logits=rows, chains=[None, chain()], **arguments) == [0, 6]


def test_unknown_steps_and_settings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="an unknown step"):
        chain(order="kpq")
    for name in [name for name, about in SETTINGS.items() if about.kind == "number"]:
        for value in (1e300, np.nan, -np.inf):
            with pytest.raises(ValueError, match="infinite, NaN or no float32"):
                chain(**{name: value})


def test_settings_that_make_no_sense_choose_some_token() -> None:
    values = [0.0, -1.0, 1e38, -1e38, 1e-300]
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    text = np.array([-5, 7, 2**31 - 1, 7, 7, 3, 7, 7, 3], np.int32)
    names = [name for name, about in SETTINGS.items() if about.kind == "number"]
    odd = [dict(zip(("temperature", "top_p", "min_p"), each, strict=True)) for each in product(values, repeat=3)]
    odd += [{name: value} for name in names for value in values]
    odd += [{"mirostat": version, name: value} for version in (1, 2) for name in names for value in values]
    odd += [{"order": "kped", "top_k": 1, name: value} for name in names for value in values]
    odd += [{"top_k": k, "repeat_last_n": n, "dry_penalty_last_n": n} for k in (-5, 2**62) for n in (-9, 2**62)]
    odd += [{"dry_allowed_length": length} for length in (-3, 0, 2**62)]
    biases, breakers = [(-1, 1.0), (2**31 - 1, 1.0)], [(3, [7]), (-2, [])]
    on = {"temperature": 0.8, "repeat_penalty": 1.2, "dry_multiplier": 0.5, "xtc_probability": 1.0, "typical_p": 0.9}
    for changes in odd:
        made = chain(**{"order": "edskypmxta", "biases": biases, "breakers": breakers, **on, **changes})
        for _ in range(3):
            (found,) = _native.sample(
                isa="scalar", logits=logits, chains=[made], draws=[0.7, 0.2], texts=[text], masks=[], team=None, poll=0
            )
            # Penalties that are not numbers make logits that are none, which are reported.
            assert 0 <= found < 50 or 0 <= ~found < 50, changes
