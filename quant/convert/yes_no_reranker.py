"""Qwen3-Reranker: a decoder that is asked whether a document answers a query, and whose next word says yes or no.

The file keeps two rows of its output matrix as a classifier, and the prompt, under llama.cpp's names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.source import Tensor
from lltool.quant.convert.families.changes import take_rows
from lltool.quant.convert.families.family import EMBEDDING, HEAD

_LABELS = ("yes", "no")
_RANK = 4
_PROMPT = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer \
can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""  # of the model's card


@dataclass(frozen=True)
class Classifier:
    """The tensors of the model with its classifier, and the keys that belong to it, with their whole names."""

    tensors: list[Tensor]
    keys: dict[str, Value]


def is_reranker(folder: Path, name: str, architecture: str) -> bool:
    """Whether the name of a checkpoint or the title of its card says so; no config.json does."""
    if architecture != "qwen3":
        return False
    card = folder / "README.md"
    title = read_bytes(card).decode(errors="replace") if card.is_file() else ""
    return "qwen3-reranker" in name.lower() or "# qwen3-reranker" in title.lower()


def make_classifier(tensors: Sequence[Tensor], tokens: Sequence[str], file: Path) -> Classifier:
    """Raises InputError if the vocabulary lacks one of the two words. A classifier that is there stays."""
    missing = [label for label in _LABELS if label not in tokens]
    if missing:
        raise InputError(f"{file}: no token {missing[0]!r}, wanted one: the model is a reranker by its name")
    by_name = {tensor.name: tensor for tensor in tensors}
    rows = np.array([tokens.index(label) for label in _LABELS])
    if "cls.output.weight" in by_name:  # made of the two rows by others, who subtracted one from the other
        return Classifier(list(tensors), {"tokenizer.chat_template.rerank": string(_PROMPT)})
    two = take_rows(by_name.pop(HEAD, by_name[EMBEDDING]), rows)
    return Classifier(
        [*by_name.values(), replace(two, name="cls.output.weight")],
        {
            "qwen3.pooling_type": u32(_RANK),
            "qwen3.classifier.output_labels": array(ValueType.STRING, list(_LABELS)),
            "tokenizer.chat_template.rerank": string(_PROMPT),
        },
    )
