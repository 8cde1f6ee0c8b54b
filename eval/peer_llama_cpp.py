"""The rival's side of a paired benchmark: runs in a Python that has llama-cpp-python, and imports nothing of ours.

    python peer_llama_cpp.py MODEL THREADS CONTEXT BATCH

A line on stdin, {"tokens": [...], "at_once": true}, is a run from an empty cache: one batch, or one token at a time.
The answer on stdout is {"nanoseconds": n}. The first line out, {"version": ...}, says that the model is loaded.
"""

import ctypes
import json
import sys
from time import perf_counter_ns
from typing import Any

# "Memory" is llama.cpp's word for the cache; older versions of the package lack these functions.
NEEDED = ("llama_get_memory", "llama_memory_clear", "llama_init_from_model", "llama_batch_get_one")


def main(path: str, threads: int, context: int, batch: int) -> int:
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
    model = lib.llama_model_load_from_file(path.encode(), model_options)
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = context, batch, batch
    options.n_threads = options.n_threads_batch = threads
    state = lib.llama_init_from_model(model, options) if model else None
    if not state:
        print(json.dumps({"error": f"llama-cpp-python {lib.__version__} could not load the model"}))
        return 2
    print(json.dumps({"version": lib.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"nanoseconds": _run(lib, state, request["tokens"], request["at_once"])}), flush=True)
    return 0


def _run(lib: Any, state: Any, tokens: list[int], at_once: bool) -> int:
    lib.llama_memory_clear(lib.llama_get_memory(state), True)
    step = len(tokens) if at_once else 1
    start = perf_counter_ns()
    for i in range(0, len(tokens), step):
        piece = (lib.llama_token * step)(*tokens[i : i + step])
        code = lib.llama_decode(state, lib.llama_batch_get_one(piece, step))
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        lib.llama_get_logits_ith(state, -1)
    return perf_counter_ns() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:5])))
