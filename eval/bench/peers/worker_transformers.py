"""Runs transformers in a benchmark in turns, in a Python that has it; this file imports nothing of ours.

    python worker_transformers.py FOLDER THREADS DTYPE

Requests and answers are those of worker_llama_cpp.py; the prompt is one batch.
"""

import json
import sys
from time import perf_counter_ns
from typing import Any


def main(folder: str, threads: int, dtype: str) -> int:
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    except (OSError, ValueError, KeyError) as error:
        print(json.dumps({"error": f"transformers {transformers.__version__} could not load {folder}: {error}"}))
        return 2
    print(json.dumps({"version": transformers.__version__}), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            request = json.loads(line)
            past = _feed(torch, model, [request["depth"]], None)
            start = perf_counter_ns()
            past = _feed(torch, model, [request["prompt"]], past)
            _feed(torch, model, [[token] for token in request["generation"]], past)
            print(json.dumps({"nanoseconds": perf_counter_ns() - start}), flush=True)
    return 0


def _feed(torch: Any, model: Any, pieces: list[list[int]], past: Any) -> Any:
    """Computes the pieces one after the other, with logits for the last token of each; returns the cache."""
    for piece in pieces:
        if piece:
            found = model(torch.tensor([piece]), past_key_values=past, use_cache=True, logits_to_keep=1)
            found.logits[0, -1, 0].item()
            past = found.past_key_values
    return past


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
