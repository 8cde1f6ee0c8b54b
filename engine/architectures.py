"""Which function traces which architecture."""

from collections.abc import Callable, Mapping

from lltool.engine.config import ModelConfig
from lltool.engine.models import gemma3, llama
from lltool.engine.program import Program, Tracer, Weight

TRACES: dict[str, Callable[[Tracer, ModelConfig], None]] = {
    "llama": llama.trace,
    "qwen2": llama.trace,
    "qwen3": llama.trace,
    "gemma3": gemma3.trace,
}


def trace_program(config: ModelConfig, weights: Mapping[str, Weight]) -> Program:
    """Raises InputError for a tensor that is missing, misshapen, of a type not computed with, or without a use."""
    tracer = Tracer(weights)
    TRACES[config.architecture](tracer, config)
    return tracer.finish()
