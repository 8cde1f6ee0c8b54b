"""The steps of sampling against those of libllama on the same logits."""

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.cpu import _native
from lltool.engine.sampling import Sampler
from lltool.engine.sampling_breakers import breaker_tokens
from lltool.engine.text.tokenizer import read_tokenizer
from lltool.gguf.reader import open_gguf
from lltool.quant import isa
from tests.engine.numpy_sampling import Reference, sort
from tests.libllama import MISSING, Options, find_library

pytestmark = pytest.mark.rival

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
SIZE = 5000
Number = ctypes.c_float


class Token(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class Tokens(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.POINTER(Token)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


class Bias(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("bias", ctypes.c_float)]


@pytest.fixture(scope="module")
def llama() -> ctypes.CDLL:
    return find_library() or pytest.skip(MISSING)


@contextmanager
def sampler_of(llama: ctypes.CDLL, name: str, *arguments: Any) -> Iterator[Callable[..., Tokens]]:
    """A sampler as a function: it accepts tokens and then applies itself to logits."""
    make = getattr(llama, f"llama_sampler_init_{name}")
    make.restype = ctypes.c_void_p
    sampler = ctypes.c_void_p(make(*arguments))

    def apply(row: NDArray[np.float32], text: tuple[int, ...] = (), before: Tokens | None = None) -> Tokens:
        for id in text:
            llama.llama_sampler_accept(sampler, ctypes.c_int32(id))
        found = before
        if found is None:
            data = (Token * len(row))(*[(id, float(logit), 0) for id, logit in enumerate(row)])
            found = Tokens(data, len(row), -1, False)
        llama.llama_sampler_apply(sampler, ctypes.byref(found))
        return found

    yield apply
    llama.llama_sampler_free(sampler)


def shares_of(tokens: Tokens) -> dict[int, float]:
    """The probabilities of what is left, from the logits."""
    left = [(tokens.data[i].id, tokens.data[i].logit) for i in range(tokens.size)]
    top = max(logit for _, logit in left)
    weights = {id: math.exp(logit - top) for id, logit in left if logit > -math.inf}
    total = sum(weights.values())
    return {id: weight / total for id, weight in weights.items()}


def check_draws(shares: dict[int, float], sampler: Sampler, row: NDArray[np.float32], text: tuple[int, ...]) -> None:
    """Draws of the native sampler fall on the tokens of the distribution, in the order of their probabilities."""
    order = sorted(shares, key=lambda id: (-shares[id], id))
    sums = np.cumsum([shares[id] for id in order])
    for draw in np.random.default_rng(0).random(60):
        (found,) = _native.sample(
            isa=isa.chosen(),
            logits=row[None],
            chains=[sampler.chain],
            draws=[draw, 0.0],
            texts=[np.array(text, np.int32)],
            masks=[],
            team=None,
            poll=0,
        )
        assert found in shares
        place = order.index(found)
        assert sums[place] - shares[found] - 1e-4 <= draw <= sums[place] + 1e-4


# Settings, and the names of the same samplers in libllama with their arguments.
CASES: list[tuple[dict[str, Any], list[tuple[Any, ...]]]] = [
    ({"top_k": 7}, [("top_k", ctypes.c_int32(7))]),
    ({"top_p": 0.8}, [("top_p", Number(0.8), ctypes.c_size_t(0))]),
    ({"min_p": 0.03}, [("min_p", Number(0.03), ctypes.c_size_t(0))]),
    ({"typical_p": 0.7}, [("typical", Number(0.7), ctypes.c_size_t(0))]),
    ({"top_n_sigma": 1.5}, [("top_n_sigma", Number(1.5))]),
    (
        {"xtc_probability": 1.0, "xtc_threshold": 0.02},
        [("xtc", Number(1.0), Number(0.02), ctypes.c_size_t(0), ctypes.c_uint32(0))],
    ),
    ({"temperature": 1.7}, [("temp_ext", Number(1.7), Number(0), Number(1))]),
    (
        {"temperature": 1.2, "dynatemp_range": 0.9, "dynatemp_exponent": 1.4},
        [("temp_ext", Number(1.2), Number(0.9), Number(1.4))],
    ),
    (
        {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.4, "repeat_last_n": 9},
        [("penalties", ctypes.c_int32(SIZE), ctypes.c_int32(9), Number(1.3), Number(0.2), Number(0.4))],
    ),
    (
        {"logit_bias": {3: 4.0, 5: -math.inf}},
        [("logit_bias", ctypes.c_int32(SIZE), ctypes.c_int32(2), (Bias * 2)((3, 4.0), (5, -math.inf)))],
    ),
    (
        {"top_k": 40, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
        [
            ("top_k", ctypes.c_int32(40)),
            ("typical", Number(0.9), ctypes.c_size_t(0)),
            ("top_p", Number(0.9), ctypes.c_size_t(0)),
            ("min_p", Number(0.05), ctypes.c_size_t(0)),
            ("temp_ext", Number(0.8), Number(0), Number(1)),
        ],
    ),
]


@pytest.mark.parametrize(
    ("changes", "steps"), CASES, ids=lambda value: "+".join(value) if isinstance(value, dict) else ""
)
def test_steps_leave_the_distribution_of_libllama(
    llama: ctypes.CDLL, changes: dict[str, Any], steps: list[tuple[Any, ...]]
) -> None:
    for seed in range(5):
        row = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32) * 3
        text = tuple(np.random.default_rng(seed).integers(0, SIZE, 20).tolist()) + tuple(np.argsort(row)[-3:].tolist())
        found = None
        for step in steps:
            with sampler_of(llama, *step) as apply:
                found = apply(row, text, found)
        assert found is not None
        check_draws(shares_of(found), Sampler(**{**OFF, "temperature": 1.0, "seed": 0, **changes}), row, text)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_the_tokens_of_libllama(llama: ctypes.CDLL, version: int) -> None:
    arguments = (ctypes.c_uint32(3), Number(3.0), Number(0.2))
    name = "mirostat" if version == 1 else "mirostat_v2"
    every = (ctypes.c_int32(SIZE), *arguments, ctypes.c_int32(100)) if version == 1 else arguments
    reference = Reference(Sampler(temperature=1, mirostat=version, mirostat_tau=3.0, mirostat_eta=0.2))
    with sampler_of(llama, name, *every) as apply:
        sizes = []
        for seed in range(30):
            row = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32) * 2
            found = apply(row)
            left = reference.mirostat_left(sort(np.arange(SIZE), row), SIZE)
            assert abs(found.size - len(left.ids)) <= 1  # it computes in single precision
            sizes.append(found.size)
            reference.remember(found.data[found.selected].p)
    assert len(set(sizes)) > 10


def test_adaptive_p_has_the_distribution_of_libllama(llama: ctypes.CDLL) -> None:
    reference = Reference(Sampler(temperature=1, adaptive_target=0.3, adaptive_decay=0.8))
    row = np.random.default_rng(0).normal(size=12).astype(np.float32) * 2
    left = sort(np.arange(12), row)
    with sampler_of(llama, "adaptive_p", Number(0.3), Number(0.8), ctypes.c_uint32(1)) as apply:
        text: tuple[int, ...] = ()
        for _ in range(20):
            found = apply(row, text)
            weights = reference.adaptive_weights(left)
            shares = shares_of(found)
            assert [shares[id] for id in left.ids.tolist()] == pytest.approx(weights / weights.sum(), abs=1e-4)
            text = (found.data[found.selected].id,)
            reference.remember(float(left.shares()[left.ids == text[0]][0]))


def test_dry_has_the_penalties_of_libllama(llama: ctypes.CDLL, real_model: Callable[[str], Path]) -> None:
    path = real_model("smollm2-q4_1")
    with open_gguf(path) as file:
        tokenizer = read_tokenizer(file)
    llama.llama_backend_init()
    for name in ("llama_model_default_params", "llama_model_load_from_file", "llama_model_get_vocab"):
        getattr(llama, name).restype = Options if "params" in name else ctypes.c_void_p
    options = llama.llama_model_default_params()
    model = ctypes.c_void_p(llama.llama_model_load_from_file(str(path).encode(), options))
    assert model.value, "libllama cannot load the model"
    vocabulary = ctypes.c_void_p(llama.llama_model_get_vocab(model))
    texts = ["\n", ":", '"', "*", "ab", " the"]
    breakers = (ctypes.c_char_p * len(texts))(*[text.encode() for text in texts])
    plain = np.zeros(tokenizer.size, np.float32)
    rng, penalised = np.random.default_rng(0), 0
    some = [*tokenizer.encode("a:b the c\nd ab e*", add_special=False), *[41, 42, 43] * 12]
    try:
        for _ in range(25):
            text = tuple(rng.choice(some, rng.integers(3, 70)).tolist()) * 2
            length, window = int(rng.integers(1, 4)), int(rng.choice([64, 20, 1000]))
            changes: dict[str, Any] = {
                "dry_multiplier": 0.8,
                "dry_allowed_length": length,
                "dry_penalty_last_n": window,
            }
            with sampler_of(
                llama, "dry", vocabulary, Number(0.8), Number(1.75), ctypes.c_int32(length), ctypes.c_int32(window),
                breakers, ctypes.c_size_t(len(texts)),
            ) as apply:  # fmt: skip
                found = apply(plain, text)
            wanted = {found.data[i].id: -found.data[i].logit for i in range(found.size) if found.data[i].logit}
            sampler = Sampler(**{**OFF, "temperature": 1.0, "dry_sequence_breakers": texts, **changes})
            sampler.use(tokenizer)
            left = Reference(sampler, breaker_tokens(tokenizer, texts)).left(plain, text, 1.0)
            less = {int(id): -logit for id, logit in zip(left.ids, left.logits, strict=True) if logit}
            assert less == pytest.approx(wanted, rel=1e-5)
            penalised += len(wanted)
        check_draws(shares_of(found), sampler, plain, text)
    finally:
        llama.llama_model_free(model)
    assert penalised > 5
