"""The embeddings of tokens, of positions, and of the types of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from lltool.engine.program import Buffer, Calls, Cost, Operation, Tracer, Weight
from lltool.engine.reference.context import Context
from lltool.gguf.ggml_types import row_bytes


@dataclass(frozen=True)
class Embed(Operation):
    """out[t] = weight[token[t]] * scale."""

    out: Buffer
    weight: str
    vocab: int
    scale: float = 1.0

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: (self.vocab, self.out.width)}

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        weight = weights[self.weight]
        return Cost(sum(calls.rows[self.rows]) * row_bytes(weight.type, weight.columns))

    def reference(self, run: Context) -> None:
        run[self.out] = run.weight_rows(self.weight, run.batch.tokens) * self.scale


@dataclass(frozen=True)
class EmbedPositions(Operation):
    """out[t] = weight[position[t]]; there are `count` positions."""

    out: Buffer
    weight: str
    count: int

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: (self.count, self.out.width)}

    def reference(self, run: Context) -> None:
        run[self.out] = run.weight_rows(self.weight, run.batch.positions)


@dataclass(frozen=True)
class EmbedTypes(Operation):
    """out[t] = weight[type[t]]; there are `count` types, such as the first text of a pair and the second."""

    out: Buffer
    weight: str
    count: int

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: (self.count, self.out.width)}

    def reference(self, run: Context) -> None:
        run[self.out] = run.weight_rows(self.weight, run.batch.token_types)


def embed_types(g: Tracer, weight: str, count: int, width: int) -> Buffer:
    return g.add(EmbedTypes(g.buffer(width), weight, count)).out


def embed_positions(g: Tracer, weight: str, count: int, width: int) -> Buffer:
    return g.add(EmbedPositions(g.buffer(width), weight, count)).out


def embed(g: Tracer, weight: str, vocab: int, width: int, scale: float = 1.0) -> Buffer:
    return g.add(Embed(g.buffer(width), weight, vocab, scale)).out
