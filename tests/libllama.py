"""llama.cpp's library, for tests that compare with it.

It is found in the folder that LLAMA_CPP_LIB_PATH names, as for llama-cpp-python, or in an installed llama-cpp-python.
"""

import ctypes
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MISSING = "llama-cpp-python is not installed, and LLAMA_CPP_LIB_PATH names no folder with libllama.so"


class Options(ctypes.Structure):
    """Room for a structure whose size depends on the version; functions take and return it in memory."""

    _fields_ = [("data", ctypes.c_uint64 * 128)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def find_library() -> ctypes.CDLL | None:
    """The library, silent and with its kernels loaded; None if this machine has none."""
    spec = None if "LLAMA_CPP_LIB_PATH" in os.environ else find_spec("llama_cpp")
    folder = os.environ.get("LLAMA_CPP_LIB_PATH") or (spec and spec.origin and Path(spec.origin).parent / "lib")
    if not folder:
        return None
    library = ctypes.CDLL(str(Path(folder) / "libllama.so"))
    load = ctypes.CDLL(str(Path(folder) / "libggml.so")).ggml_backend_load_all_from_path
    load(str(folder).encode())  # the kernels, which some builds have in files of their own
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library.quiet = log(lambda level, text, data: None)  # type: ignore[attr-defined]  # kept as long as the library
    library.llama_log_set(library.quiet, None)
    return library


def logits_of(
    library: ctypes.CDLL, path: Path, ids: NDArray[np.integer], lora: Sequence[tuple[Path, float]] = ()
) -> NDArray[np.float32] | None:
    """The logits (T, V) of a text by llama.cpp, with keys and values in F32; None if it does not load the file.

    `lora` are adapters with their scales, which it must load.
    """
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(library, name).restype = Options
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab"):
        getattr(library, name).restype = ctypes.c_void_p
    library.llama_batch_init.restype = _Batch
    library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    if not model:
        return None
    context = library.llama_init_from_model(ctypes.c_void_p(model), _context_options(library, len(ids)))
    batch = library.llama_batch_init(len(ids), 0, 1)
    try:
        _apply(library, model, context, lora)
        batch.n_tokens = len(ids)
        for place, id in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = int(id), place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        status = library.llama_decode(ctypes.c_void_p(context), batch)
        assert status == 0, f"{path}: llama_decode returned {status}"
        vocab = library.llama_vocab_n_tokens(ctypes.c_void_p(library.llama_model_get_vocab(ctypes.c_void_p(model))))
        rows = np.ctypeslib.as_array(library.llama_get_logits(ctypes.c_void_p(context)), (len(ids), vocab))
        return rows.copy()
    finally:
        library.llama_batch_free(batch)
        library.llama_free(ctypes.c_void_p(context))
        library.llama_model_free(ctypes.c_void_p(model))


def _apply(library: ctypes.CDLL, model: int, context: int, lora: Sequence[tuple[Path, float]]) -> None:
    library.llama_adapter_lora_init.restype = ctypes.c_void_p
    loaded = [library.llama_adapter_lora_init(ctypes.c_void_p(model), str(path).encode()) for path, _ in lora]
    assert all(loaded), f"llama.cpp does not load {lora}"
    if loaded:
        adapters = (ctypes.c_void_p * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*(scale for _, scale in lora))
        status = library.llama_set_adapters_lora(ctypes.c_void_p(context), adapters, len(loaded), scales)
        assert status == 0, f"llama_set_adapters_lora returned {status}"


def _context_options(library: ctypes.CDLL, tokens: int) -> Options:
    """Options of a context for one text of `tokens`, whose attention computes in F32.

    Sizes stand at the beginning. The place of the others depends on the version: flash attention is the last of four
    settings that are -1 (automatic), and the types of keys and values are 1 (F16) after an empty callback and its data.
    """
    options: Options = library.llama_context_default_params()
    numbers = np.ctypeslib.as_array(options.data).view(np.int32)
    numbers[:3] = tokens
    numbers[_place(numbers, [-1, -1, -1, -1]) + 3] = 0  # off
    types = _place(numbers, [0, 0, 0, 0, 1, 1]) + 4
    numbers[types : types + 2] = 0  # F32
    return options


def _place(numbers: NDArray[np.int32], pattern: list[int]) -> int:
    places = [place for place in range(60) if [*numbers[place : place + len(pattern)]] == pattern]
    assert len(places) == 1, f"this version of llama.cpp has {pattern} at {places} of its options; wanted one place"
    return places[0]
