"""Throughput measurements as llama-bench prints them: its Markdown look, its CSV and JSON columns in its order."""

import csv
import io
import json
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from lltool import __version__
from lltool.eval.provenance import cpu_name
from lltool.eval.throughput import Measurement

GIB = 1 << 30


def columns(measurement: Measurement) -> dict[str, Any]:
    """A llama-bench row: what this engine has no notion of carries the value that says 'not used'."""
    m = measurement
    return {
        "build_commit": f"lltool-{__version__}",
        "build_number": 0,
        "cpu_info": cpu_name(),
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": str(m.path),
        "model_type": model_type(m),
        "model_size": m.model.tensor_bytes,
        "model_n_params": m.model.parameters,
        "n_batch": m.batch,
        "n_ubatch": m.batch,
        "n_threads": m.threads,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 0,
        "type_k": m.cache_type,
        "type_v": m.cache_type,
        "n_gpu_layers": 0,
        "n_cpu_moe": 0,
        "split_mode": "none",
        "main_gpu": 0,
        "no_kv_offload": True,
        "flash_attn": 1,
        "devices": "none",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": "mmap",
        "lazy_mode": "none",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": False,
        "fit_target": 0,
        "fit_min_ctx": 0,
        "n_prompt": m.workload.prompt,
        "n_gen": m.workload.generation,
        "n_depth": 0,
        "test_time": m.started,
        "avg_ns": round(mean(m.nanoseconds)),
        "stddev_ns": round(stdev(m.nanoseconds)) if len(m.nanoseconds) > 1 else 0,
        "avg_ts": m.mean,
        "stddev_ts": m.deviation,
    }


def format_json(measurements: Sequence[Measurement]) -> str:
    """llama-bench's array, each row with its samples and their median at the end."""
    rows = [
        columns(m) | {"samples_ns": list(m.nanoseconds), "samples_ts": m.speeds, "median_ts": m.median}
        for m in measurements
    ]
    return json.dumps(rows, indent=2)


def format_csv(measurements: Sequence[Measurement]) -> str:
    """A header and a line a measurement, every field quoted, True and False as 1 and 0."""
    rows = [columns(m) for m in measurements]
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([int(v) if isinstance(v, bool) else v for v in row.values()] for row in rows)
    return text.getvalue().rstrip("\n")


def format_markdown(measurements: Sequence[Measurement]) -> str:
    """llama-bench's table: mean ± standard deviation of tokens a second."""
    rows = [("model", "size", "params", "backend", "threads", "test", "t/s")]
    rows.append(("-" * 30, "-" * 9 + ":", "-" * 9 + ":", "-" * 10, "-" * 6 + ":", "-" * 14 + ":", "-" * 19 + ":"))
    for m in measurements:
        size, count = format_size(m.model.tensor_bytes), format_count(m.model.parameters)
        speed = f"{m.mean:.2f} ± {m.deviation:.2f}"
        rows.append((model_type(m), size, count, "CPU", str(m.threads), str(m.workload), speed))
    return "\n".join("| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} |".format(*row) for row in rows)


def model_type(m: Measurement) -> str:
    """Architecture, parameters and file type, as in `qwen2 494M Q4_K_M`."""
    count = m.model.parameters
    label = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
    return f"{m.model.architecture} {label} {m.model.file_type or 'of mixed types'}"


def format_size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / (1 << 20):.2f} MiB"


def format_count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
