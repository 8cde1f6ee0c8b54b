"""Makes rows of invented measurements for tests."""

from typing import Any

from lltool.eval.bench.results.rows import ResultRow, complete_row


def made_row(
    prompt: int = 512,
    generation: int = 0,
    speeds: tuple[float, ...] = (99.0, 100.0, 101.0, 100.0, 100.0),
    **columns: Any,
) -> ResultRow:
    """A complete row with these speeds in tokens a second; `columns` replace the usual values."""
    tokens = (prompt + generation) * columns.get("n_parallel", 1)
    usual: dict[str, Any] = {
        "build_commit": "0123abcd",
        "build_number": 0,
        "cpu_info": "Example CPU 9000",
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": "models/m-q4_0.gguf",
        "model_type": "llama 135M Q4_0",
        "model_size": 80 << 20,
        "model_n_params": 134_515_008,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": 2,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 50,
        "type_k": "f16",
        "type_v": "f16",
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
        "lazy_mode": "off",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": False,
        "fit_target": 0,
        "fit_min_ctx": 0,
        "n_prompt": prompt,
        "n_gen": generation,
        "n_depth": 0,
        "test_time": "2026-01-02T03:04:05Z",
        "avg_ns": round(sum(tokens * 1e9 / speed for speed in speeds) / len(speeds)),
        "stddev_ns": 0,
        "avg_ts": sum(speeds) / len(speeds),
        "stddev_ts": 1.0 if len(speeds) > 1 else 0.0,
        "engine": "lltool 0.1.0",
        "model_sha256": "00ff",
        "samples_ns": [round(tokens * 1e9 / speed) for speed in speeds],
        "samples_ts": list(speeds),
    }
    return complete_row(usual | columns, "a made row")
