"""The table of sampling settings, and what a model's file ships of them."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from lltool.engine.sampling import Sampler
from lltool.engine.sampling_breakers import breaker_tokens
from lltool.engine.sampling_settings import (
    DEFAULTS,
    SETTINGS,
    STEPS,
    SamplingOptions,
    SamplingSettings,
    parse_setting,
    shipped_settings,
    show_setting_value,
)
from lltool.engine.text.tokenizer import Tokenizer, read_tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.sampling_keys import sampling_fields, sampling_metadata


def test_named_arguments_are_those_of_the_table() -> None:
    hints = get_type_hints(SamplingSettings)
    assert get_type_hints(SamplingOptions) == {each.name: hints[each.name] for each in fields(SamplingSettings)}


def test_the_defaults_are_those_of_llama_cpp() -> None:
    wanted = {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "top_n_sigma": -1.0,
        "xtc_probability": 0.0, "xtc_threshold": 0.1, "repeat_last_n": 64, "repeat_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75,
        "dry_allowed_length": 2, "dry_penalty_last_n": 64, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0,
        "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "adaptive_target": -1.0, "adaptive_decay": 0.9,
        "seed": None, "logit_bias": {}, "ignore_eos": False,
    }  # fmt: skip
    found = SamplingSettings()
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert "".join(STEPS[step] for step in found.samplers) == "edskypmxt"
    assert found.dry_sequence_breakers == ("\n", ":", '"', "*")


def test_a_shown_value_is_read_as_the_same() -> None:
    values = {name: value for name, value in DEFAULTS.items() if SETTINGS[name].kind in ("number", "whole", "steps")}
    values |= {"ignore_eos": True, "logit_bias": {3: 1.5, 4: -math.inf}, "dry_sequence_breakers": ()}
    for name, value in values.items():
        assert parse_setting(name, show_setting_value(name, value)) == value, name


@pytest.mark.parametrize("text", ["kpt", "top_k;top_p;temperature", "Top-K; nucleus;temp", "topk;top-p;temperature"])
def test_steps_have_llama_cpps_names(text: str) -> None:
    assert parse_setting("samplers", text) == ("top_k", "top_p", "temperature")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"temperature": -0.1}, InputError, "temperature -0.1, wanted a number from 0"),
        ({"top_p": 1.5}, InputError, "top_p 1.5, wanted a number from 0 to 1"),
        ({"min_p": -0.5}, InputError, "min_p -0.5"),
        ({"seed": -2}, InputError, "seed -2"),
        ({"repeat_penalty": 0}, InputError, "repeat_penalty 0, wanted a number from 1e-06"),
        ({"repeat_last_n": -2}, InputError, "repeat_last_n -2, wanted a number from -1"),
        ({"dry_base": 0.5}, InputError, "dry_base 0.5, wanted a number from 1"),
        ({"adaptive_decay": 1}, InputError, "adaptive_decay 1, wanted a number from 0 to 0.99"),
        ({"frequency_penalty": math.nan}, InputError, "frequency_penalty nan"),
        ({"mirostat": 1.0}, TypeError, "mirostat 1.0, wanted a whole number"),
        ({"ignore_eos": 1}, TypeError, "ignore_eos 1, wanted True or False"),
        ({"samplers": "kt"}, TypeError, "samplers 'kt', wanted a list of texts"),
        ({"samplers": ["best"]}, InputError, "no sampling step 'best'; wanted some of penalties"),
        ({"dry_sequence_breakers": [""]}, InputError, "dry_sequence_breakers has an empty text"),
        ({"logit_bias": [3]}, TypeError, "wanted numbers by token id"),
        ({"logit_bias": {3: math.inf}}, InputError, "logit_bias of token 3 is inf, wanted -inf or a number"),
        ({"logit_bias": {-3: 1.0}}, InputError, "logit_bias: token -3, wanted at least 0"),
        ({"logit_bias": {3: "1"}}, TypeError, "logit_bias of token 3 '1', wanted a number"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sampler(**changes)


def test_the_settings_of_a_model_survive_conversion_and_export() -> None:
    generation = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True, "top_p": None}
    metadata = sampling_metadata(generation, "generation_config.json")
    assert {key.removeprefix("general.sampling."): value.type.name for key, value in metadata.items()} == {
        "temp": "FLOAT32", "top_k": "INT32", "penalty_repeat": "FLOAT32",
    }  # fmt: skip
    stored = {key: as_stored(value) for key, value in metadata.items()}
    assert shipped_settings(stored) == {"temperature": 0.6, "top_k": 20, "repeat_penalty": 1.05}
    assert shipped_settings(stored, given=["top_k", "temperature"]) == {"repeat_penalty": 1.05}
    assert sampling_fields(stored) == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    with pytest.raises(InputError, match=r"c.json: top_k is 'all', wanted a whole number; correct it or remove it"):
        sampling_metadata({"top_k": "all"}, "c.json")


def as_stored(value: Value) -> Value:
    return Value(value.type, float(np.float32(value.data))) if value.type == ValueType.FLOAT32 else value


def test_what_a_file_ships_is_checked() -> None:
    def shipped(name: str, type: ValueType, data: Any) -> dict[str, Any]:
        return shipped_settings({f"general.sampling.{name}": Value(type, data)})

    assert shipped("sequence", ValueType.STRING, "top_k;temp") == {"samplers": ("top_k", "temperature")}
    assert shipped("top_k", ValueType.INT32, -1) == {"top_k": 0}
    with pytest.raises(InputError, match=r"general.sampling.top_p: top_p 7.0, wanted .*; give --top-p to use another"):
        shipped("top_p", ValueType.FLOAT32, 7.0)
    with pytest.raises(InputError, match=r"general.sampling.top_k: top_k 'x', wanted a whole number"):
        shipped("top_k", ValueType.STRING, "x")


@pytest.fixture(scope="module")
def tokenizer(real_model: Any) -> Tokenizer:
    with open_gguf(Path(real_model("smollm2-q4_1"))) as file:
        return read_tokenizer(file)


def test_breakers_are_the_tokens_that_hold_or_begin_their_text(tokenizer: Tokenizer) -> None:
    found = breaker_tokens(tokenizer, ["\n"])
    assert {head for head, _ in found} == {id for id in range(tokenizer.size) if b"\n" in tokenizer.piece(id)}
    assert all(tail == [] for _, tail in found)
    pieces = {id: tokenizer.piece(id) for id in range(tokenizer.size)}
    wanted = {(id, ()) for id, piece in pieces.items() if b"ab" in piece}
    rest = tuple(tokenizer.encode("b", add_special=False))
    wanted |= {(id, rest) for id, piece in pieces.items() if piece.endswith(b"a") and b"ab" not in piece}
    assert {(head, tuple(tail)) for head, tail in breaker_tokens(tokenizer, ["ab"])} == wanted
    two = breaker_tokens(tokenizer, [" the dog"])
    the, dog = tokenizer.encode(" the dog", add_special=False)
    assert (the, [dog]) in two
    assert all(
        (tokenizer.piece(head) + b"".join(map(tokenizer.piece, tail))).endswith(b" the dog") for head, tail in two
    )
    assert breaker_tokens(tokenizer, [" the dog"]) is two


def test_ignored_end_tokens_are_never_chosen(tokenizer: Tokenizer) -> None:
    logits = np.zeros(tokenizer.size, np.float32)
    logits[list(tokenizer.end_of_generation)] = 9
    sampler = Sampler(temperature=0, ignore_eos=True)
    with pytest.raises(InputError, match="need a tokenizer; call `use` first"):
        sampler.sample(logits)
    sampler.use(tokenizer)
    assert sampler.sample(logits) not in tokenizer.end_of_generation
    with pytest.raises(InputError, match="logit_bias: token 49152, wanted one from 0 to 49151"):
        Sampler(logit_bias={tokenizer.size: 1.0}).use(tokenizer)
