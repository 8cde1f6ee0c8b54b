"""The table of functions that trace each architecture."""

from collections.abc import Callable, Mapping

import numpy as np

from lltool.engine.config import ModelConfig
from lltool.engine.models import (
    bert,
    gemma3,
    gemma3n,
    gemma4,
    hybrid,
    kimi_linear,
    llama,
    nemotron_h,
    olmo2,
    parallel,
    qwen3_next,
    rwkv7,
)
from lltool.engine.program import Program, Tracer, Weight
from lltool.gguf.source import Source

TRACES: dict[str, Callable[[Tracer, ModelConfig], None]] = {
    "llama": llama.trace,
    "qwen2": llama.trace,
    "qwen2moe": llama.trace,
    "qwen3": llama.trace,
    "qwen3moe": llama.trace,
    "qwen3next": qwen3_next.trace,
    "kimi-linear": kimi_linear.trace,
    "qwen35": qwen3_next.trace,
    "qwen35moe": qwen3_next.trace,
    "olmoe": llama.trace,
    "granitemoe": llama.trace,
    "glm4moe": llama.trace,
    "ernie4_5-moe": llama.trace,
    "dots1": llama.trace,
    "deepseek2": llama.trace,
    "minimax-m2": llama.trace,
    "hunyuan-moe": llama.trace,
    "phimoe": llama.trace,
    "llama4": llama.trace,
    "mistral3": llama.trace,
    "arcee": llama.trace,
    "gpt-oss": llama.trace,
    "gemma3": gemma3.trace,
    "gemma": llama.trace,
    "gemma2": gemma3.trace,
    "gemma3n": gemma3n.trace,
    "gemma4": gemma4.trace,
    "internlm2": llama.trace,
    "baichuan": llama.trace,
    "minicpm": llama.trace,
    "granite": llama.trace,
    "phi3": llama.trace,
    "smollm3": llama.trace,
    "stablelm": parallel.trace,
    "olmo": llama.trace,
    "olmo2": olmo2.trace,
    "qwen": llama.trace,
    "chatglm": llama.trace,
    "glm4": gemma3.trace,
    "command-r": parallel.trace,
    "cohere2": parallel.trace,
    "starcoder2": llama.trace,
    "phi2": parallel.trace,
    "gptneox": parallel.trace,
    "gptj": parallel.trace,
    "gpt2": llama.trace,
    "starcoder": llama.trace,
    "falcon": parallel.trace,
    "mpt": llama.trace,
    "bloom": llama.trace,
    "nemotron": llama.trace,
    "exaone": llama.trace,
    "exaone4": olmo2.trace,
    "seed_oss": llama.trace,
    "apertus": llama.trace,
    "ernie4_5": llama.trace,
    "hunyuan-dense": llama.trace,
    "lfm2": hybrid.trace,
    "lfm2moe": hybrid.trace,
    "mamba": hybrid.trace,
    "mamba2": hybrid.trace,
    "falcon-h1": hybrid.trace,
    "jamba": hybrid.trace,
    "rwkv7": rwkv7.trace,
    "nemotron_h": nemotron_h.trace,
    "nemotron_h_moe": nemotron_h.trace,
    "granitehybrid": hybrid.trace,
    "bert": bert.trace,
    "nomic-bert": bert.trace,
    "jina-bert-v2": bert.trace,
    "jina-bert-v3": bert.trace,
    "modern-bert": llama.trace,
    "eurobert": llama.trace,
    "gemma-embedding": gemma3.trace,
    "t5encoder": llama.trace,
}


def trace_program(config: ModelConfig, weights: Mapping[str, Weight]) -> Program:
    """Raises InputError if a tensor is missing, misshapen, of an unsupported type, or not used by the architecture."""
    if config.traits.extra_blocks:
        weights = {name: weight for name, weight in weights.items() if _block(name) < config.layers}
    tracer = Tracer(dict(weights))
    TRACES[config.architecture](tracer, config)
    return tracer.finish()


def _block(name: str) -> int:
    """The number of a tensor's block; -1 if it is in none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal() else -1


def check_runnable(source: Source) -> None:
    """Raises the InputError that loading would raise if this version cannot run the model. Reads no matrix."""
    trace_header(source)


def trace_header(source: Source) -> tuple[ModelConfig, Program]:
    """The configuration and the program of a model, with matrices that have no data. Raises as `trace_program` does."""
    nothing = np.empty((0, 0), np.uint8)
    weights = {}
    for tensor in source.tensors:
        data = tensor.data() if len(tensor.shape) == 1 else nothing
        weights[tensor.name] = Weight(tensor.name, tensor.type, tensor.shape, data)
    config = ModelConfig.from_gguf(source.metadata, weights)
    return config, trace_program(config, weights)
