from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


PAGE_TOKENS: int = 64

MAX_HEAD_DIM: int = 576

MAX_DELTA_DIM: int = 256

MAX_GROUP: int = 128

BIAS_PADDING: int = 16

def available_isas() -> list[str]:
    """Instruction sets this processor can run, best first."""

def built_isas() -> list[str]:
    """Instruction sets that this module was compiled for, best first."""

def probe_read(isa: str, threads: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], seconds: float) -> float:
    """Bytes a second."""

def probe_multiply(isa: str, threads: int, kind: str, seconds: float) -> float:
    """Multiply-adds a second of int8, int16 or float32."""

class Product:
    def __init__(self, *, out: tuple[int, int], type: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, part: int = 0, parts: int = 1) -> None: ...

class Function:
    def __init__(self, *, name: str, vector: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, factor: float = 0.0, unit: int = 1) -> None: ...

class SampleChain:
    def __init__(self, *, order: str, temperature: float, dynatemp_range: float, dynatemp_exponent: float, top_k: int, top_p: float, min_p: float, typical_p: float, top_n_sigma: float, xtc_probability: float, xtc_threshold: float, repeat_last_n: int, repeat_penalty: float, frequency_penalty: float, presence_penalty: float, dry_multiplier: float, dry_base: float, dry_allowed_length: int, dry_penalty_last_n: int, mirostat: int, mirostat_tau: float, mirostat_eta: float, adaptive_target: float, adaptive_decay: float, biases: Sequence[tuple[int, float]], breakers: Sequence[tuple[int, Sequence[int]]]) -> None: ...

    def copy(self) -> SampleChain:
        """A chain that remembers the same."""

    @property
    def draws(self) -> int:
        """The random numbers that a token takes: 0 to 2."""

    @property
    def wants_text(self) -> bool:
        """Whether the choice depends on the text."""

def sample(*, isa: str, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], chains: Sequence[SampleChain | None], draws: Sequence[float], texts: Sequence[Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None], masks: Sequence[Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None], team: Sequence[Sequence[int]] | None, poll: int) -> list[int]:
    """
    Chooses a token for each row (engine/sampling.py); ~id stands for a largest logit that is not finite.
    """

class Executor:
    def __init__(self, *, isa: str, decode: Sequence[Sequence[int]], batch: Sequence[Sequence[int]], poll: int, max_batch: int, head_rows: int, arena_width: int, vocabulary: int, pages: int, slots: int, int8: bool, k_type: int, v_type: int, deterministic: bool) -> None: ...

    def convolution(self, *, x: tuple[int, int], out: tuple[int, int], weight: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, silu: bool = False) -> None: ...

    def selective_scan(self, *, x: tuple[int, int], dt: tuple[int, int], b: tuple[int, int], c: tuple[int, int], out: tuple[int, int], a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], d: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def scan(self, *, xbc: tuple[int, int], dt: tuple[int, int], out: tuple[int, int], groups: int, a: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], d: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], dt_bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def gated_delta(self, *, qkv: tuple[int, int], beta: tuple[int, int], alpha: tuple[int, int], out: tuple[int, int], key_heads: int, key_dim: int, tiled: bool, rate: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def mix_streams(self, *, y: tuple[int, int], z: tuple[int, int], coefficients: tuple[int, int], out: tuple[int, int], outer: int, inner: int, shift: float = 0.0) -> None: ...

    def match_magnitude(self, *, x: tuple[int, int], y: tuple[int, int], out: tuple[int, int], streams: int, least: float) -> None: ...

    def route(self, *, logits: tuple[int, int], chosen: tuple[int, int], weights: tuple[int, int], scoring: str, normalized: bool, factor: float, groups: int = 1, groups_used: int = 1, counted: int = 2, bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> None: ...

    def weigh(self, *, x: tuple[int, int], chosen: tuple[int, int], weights: tuple[int, int], out: tuple[int, int]) -> None: ...

    def combine(self, *, x: tuple[int, int], chosen: tuple[int, int], weights: tuple[int, int] | None, out: tuple[int, int], residual: tuple[int, int] | None = None) -> None: ...

    def shared_gate(self, *, x: tuple[int, int], h: tuple[int, int], out: tuple[int, int], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def embed(self, *, out: tuple[int, int], type: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scale: float, by: str = 'token') -> None: ...

    def function(self, *, function: Function, x: tuple[int, int], y: tuple[int, int] | None = None, out: tuple[int, int], group: int = -1) -> None: ...

    def linear(self, *, x: tuple[int, int], groups: Sequence[Sequence[Product]], residual: tuple[int, int] | None = None, norm: Function | None = None) -> None: ...

    def head_linear(self, *, x: tuple[int, int], out: tuple[int, int], type: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], heads: int, columns: int) -> None: ...

    def concatenate(self, *, x: tuple[int, int], y: tuple[int, int], out: tuple[int, int]) -> None: ...

    def rope(self, *, x: tuple[int, int], out: tuple[int, int], head_dim: int, frequencies: Sequence[float], magnitude: float, interleaved: bool, first: int = 0, group: int = -1) -> None: ...

    def scale_by_position(self, *, x: tuple[int, int], out: tuple[int, int], factor: float, length: int, offset: int = 0, group: int = -1) -> None: ...

    def attention(self, *, q: tuple[int, int], k: tuple[int, int], v: tuple[int, int] | None, out: tuple[int, int], layer: int, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0, chunk: int = 0, softcap: float = 0.0, sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, slopes: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, common_key: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, biases: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, stores: bool = True, causal: bool = True, groups: tuple[int, int] = (-1, -1)) -> None: ...

    def select(self, *, x: tuple[int, int], out: tuple[int, int], mean: bool = False) -> None: ...

    def experts(self, *, x: tuple[int, int], assigned: bool, chosen: tuple[int, int], products: Sequence[Product], activation: Function | None = None, out: tuple[int, int] | None = None) -> None: ...

    def split(self, *, x: tuple[int, int], outs: Sequence[tuple[int, int]], groups: int) -> None: ...

    def observe(self, *, x: tuple[int, int], chosen: tuple[int, int] | None = None, assigned: bool = False) -> None: ...

    def take_sums(self, observer: int, sums: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order='C', device='cpu')], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def operations(self) -> int: ...

    def take_times(self) -> list[int]: ...

    def finish(self) -> None: ...

    def run(self, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], positions: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], sequences: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], tables: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], outputs: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], slots: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], types: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> None: ...

    def logits(self, start: int, stop: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), writable=False)]: ...

    def score(self, start: int, targets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def compare(self, start: int, base: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], targets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

    def copy_page(self, source: int, target: int) -> None: ...

    def copy_slot(self, source: int, target: int) -> None: ...
