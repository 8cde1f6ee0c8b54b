"""Settings of encoders and rerankers: attention in both directions, pooling, classifiers, types of tokens."""

from dataclasses import replace
from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array, boolean, string, u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.keys import Keys, Setting
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.sentence_modules import POOLINGS, read_dense, read_pooling

_RANK = 4
NO_EXPORT = "this version exports decoders only"


class OneWay(Setting):
    """A setting of families without export."""

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("a family without export")


class Bidirectional(OneWay):
    """Tokens see those after them too."""

    def describe(self, config: Config) -> Keys:
        config.expect("is_decoder", False)
        config.expect("add_cross_attention", False)
        return {"attention.causal": boolean(False)}


class TokenTypes(OneWay):
    """The number of types of tokens, which llama.cpp wants among the keys about tokens."""

    def describe(self, config: Config) -> Keys:
        config.whole_keys["tokenizer.ggml.token_type_count"] = u32(config.integer("type_vocab_size", 1))
        return {}


class SentencePooling(OneWay):
    """What the modules of sentence-transformers beside the model state, if there are any: the pooling.

    With `dense`, there are also the matrices after it, of which files have no more than two.
    """

    def __init__(self, *, dense: bool = False) -> None:
        self.most = 2 if dense else 0

    def describe(self, config: Config) -> Keys:
        pooling = read_pooling(config.folder)
        keys: Keys = {} if pooling is None else {"pooling_type": u32(POOLINGS[pooling])}
        for number, matrix in enumerate(read_dense(config.folder, self.most), 2):
            config.added.append(replace(matrix, name=f"dense_{number}.weight"))
            keys[f"dense_{number}_feat_in"] = u32(matrix.columns)
            keys[f"dense_{number}_feat_out"] = u32(matrix.rows)
        return keys


class OptionalSentencePooling(SentencePooling):
    """The same, of decoders, which export without the pooling."""

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {}


class Labels(OneWay):
    """The labels of a reranker's classifier; a file without their names has one."""

    def describe(self, config: Config) -> Keys:
        names = config.get("id2label")
        stated = [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else []
        labels = stated or [f"LABEL_{number}" for number in range(config.integer("num_labels", 2))]
        config.derive("_labels", len(labels))
        keys: Keys = {"pooling_type": u32(_RANK)}
        if len(labels) > 1:
            keys["classifier.output_labels"] = array(ValueType.STRING, labels)
        return keys


class ClassifierPooling(OneWay):
    """Which states ModernBERT's classifier reads."""

    def describe(self, config: Config) -> Keys:
        config.expect("classifier_pooling", "cls", "mean")
        return {"classifier.pooling_type": u32(POOLINGS[config.get("classifier_pooling")])}


class HiddenActivation(OneWay):
    """The activation of a gate, which the file states."""

    def describe(self, config: Config) -> Keys:
        config.expect("hidden_activation", "gelu", "silu")
        return {"hidden_activation": string(config.get("hidden_activation"))}


class CutPositions(OneWay):
    """RoBERTa counts positions from its padding token's number + 1; the file has no embeddings of those before."""

    def describe(self, config: Config) -> Keys:
        cut = config.integer("pad_token_id", 1) + 1
        positions = config.integer("max_position_embeddings") - cut
        config.require("max_position_embeddings", positions > 0, f"more than {cut}, from which positions count")
        config.derive("_positions", positions)
        return {"context_length": u32(positions)}


class Periods(OneWay):
    """Layers with attention to the whole text, of which every n-th is the first of its period."""

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        period = config.integer("global_attn_every_n_layers", 3)
        slides = config.sliding_layers(layers) or [layer % period != 0 for layer in range(layers)]
        window = u32(config.integer("local_attention"))
        if not any(slides):
            return {}
        periods = [n for n in range(1, layers + 1) if slides == [layer % n != 0 for layer in range(layers)]]
        pattern = u32(periods[0]) if periods else array(ValueType.BOOL, np.array(slides))
        return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}
