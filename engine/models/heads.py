"""The ends of programs: logits of tokens, vectors of texts, and scores of rerankers."""

from dataclasses import replace

from lltool.engine.config import ModelConfig
from lltool.engine.models.norms import normed
from lltool.engine.operations.elementwise import activate, scale, softcap
from lltool.engine.operations.linear import linear
from lltool.engine.operations.select import Select, select
from lltool.engine.program import Buffer, Program, Tracer, assign_offsets, end_with_hidden_states


def head(g: Tracer, config: ModelConfig, x: Buffer) -> Buffer:
    """The logits of the selected rows. Without an output matrix, the embedding takes its place (tied weights).

    An encoder ends with the vectors of its texts, a reranker with scores.
    """
    if not config.is_causal:
        return _text_head(g, config, x)
    x = normed(g, config, select(g, x), config.traits.output_norm)
    if config.pooling.ranks:
        return _classifier(g, config, x)
    matrix = "output.weight" if "output.weight" in g.weights else "token_embd.weight"
    (logits,) = linear(g, x, [matrix], [config.vocab])
    if config.logit_scale != 1:
        logits = scale(g, logits, config.logit_scale)
    return softcap(g, logits, config.logit_softcap) if config.logit_softcap else logits


def _text_head(g: Tracer, config: ModelConfig, x: Buffer) -> Buffer:
    """The pooled states of texts, and what the classifier, or matrices after the pooling, make of them."""
    if f"{config.traits.output_norm}.weight" in g.weights:
        x = normed(g, config, x, config.traits.output_norm)
    x = select(g, x, mean=config.pooling.kind == "mean")
    if config.pooling.ranks:
        return _classifier(g, config, x)
    for name in ("dense_2.weight", "dense_3.weight"):  # of EmbeddingGemma
        if name in g.weights:
            (x,) = linear(g, x, [name], [g.weights[name].rows])
    return x


def _classifier(g: Tracer, config: ModelConfig, x: Buffer) -> Buffer:
    if "cls.weight" in g.weights:
        (x,) = linear(g, x, ["cls.weight"], [config.width])
        x = activate(g, x, config.traits.classifier_activation)
        if "cls.norm.weight" in g.weights:
            x = normed(g, config, x, "cls.norm")
    labels = g.weights["cls.output.weight"].rows if "cls.output.weight" in g.weights else 1
    return linear(g, x, ["cls.output.weight"], [labels])[0]


def end_with_states(program: Program, config: ModelConfig) -> Program:
    """The program whose rows are the normed states of the selected tokens, (R, width)."""
    if config.is_causal:
        return end_with_hidden_states(program)
    pool = program.ops[program.head]
    assert isinstance(pool, Select)
    ops = (*program.ops[: program.head], replace(pool, mean=False))
    return Program(ops, program.weights, *assign_offsets(ops, len(program.offsets), pool.out), pool.out)
