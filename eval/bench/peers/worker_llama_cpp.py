"""Runs llama-cpp-python in a benchmark in turns, in a Python that has it; this file imports nothing of ours.

    python worker_llama_cpp.py MODEL THREADS CONTEXT BATCH UBATCH REPACK

Each line on stdin, {"depth": [ids], "prompt": [ids], "generation": [ids]}, asks for a run from an empty cache. The
clock starts after `depth`; `prompt` is computed in batches, `generation` one token at a time. The answer on stdout is
{"nanoseconds": n}. The first line on stdout, {"version": ...}, says that the model is loaded.
"""

import ctypes
import json
import sys
from time import perf_counter_ns
from typing import Any

# "Memory" is llama.cpp's word for the cache; older versions of the package lack these functions.
NEEDED = ("llama_get_memory", "llama_memory_clear", "llama_init_from_model", "llama_batch_get_one")


def main(path: str, threads: int, context: int, batch: int, ubatch: int, repack: int) -> int:
    import llama_cpp as lib  # type: ignore[import-not-found]

    missing = [name for name in NEEDED if not hasattr(lib, name)]
    if missing:
        print(json.dumps({"error": f"llama-cpp-python {lib.__version__} lacks {missing[0]}; wanted 0.3.10 or later"}))
        return 2
    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model_options = lib.llama_model_default_params()
    model_options.n_gpu_layers = 0
    if hasattr(model_options, "use_extra_bufts"):  # older versions always repack weights
        model_options.use_extra_bufts = bool(repack)
    model = lib.llama_model_load_from_file(path.encode(), model_options)
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = context, batch, ubatch
    options.n_threads = options.n_threads_batch = threads
    state = lib.llama_init_from_model(model, options) if model else None
    if not state:
        print(json.dumps({"error": f"llama-cpp-python {lib.__version__} could not load the model"}))
        return 2
    print(json.dumps({"version": lib.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        lib.llama_memory_clear(lib.llama_get_memory(state), True)
        _feed(lib, state, request["depth"], batch)
        start = perf_counter_ns()
        _feed(lib, state, request["prompt"], batch)
        _feed(lib, state, request["generation"], 1)
        print(json.dumps({"nanoseconds": perf_counter_ns() - start}), flush=True)
    return 0


def _feed(lib: Any, state: Any, tokens: list[int], step: int) -> None:
    """Computes the tokens, `step` at once, and waits for the logits of the last token of each batch."""
    for i in range(0, len(tokens), step):
        ids = tokens[i : i + step]
        piece = (lib.llama_token * len(ids))(*ids)  # the batch only holds a pointer to it
        code = lib.llama_decode(state, lib.llama_batch_get_one(piece, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        lib.llama_get_logits_ith(state, -1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:7])))
