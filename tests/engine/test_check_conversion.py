"""A conversion whose tokenizer would make other ids than the checkpoint's is not written."""

from dataclasses import replace
from pathlib import Path

import pytest

from lltool.engine.check_conversion import check_conversion
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string
from lltool.gguf.source import Model
from lltool.quant.convert.conversion import Conversion, plan_conversion
from tests.tiny_checkpoints import make_checkpoint


def change(conversion: Conversion, **keys: Value) -> Conversion:
    metadata = conversion.model.metadata | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return replace(conversion, model=Model(metadata, conversion.model.tensors))


@pytest.mark.parametrize("tokenizer", ["qwen2", "spm", "spm-json"])
def test_a_planted_fault_in_the_tokenizer_is_found(tokenizer: str, tmp_path: Path) -> None:
    """Merges in the wrong order, another pre-tokenizer, wrong scores: the first text that differs is named."""
    conversion = plan_conversion(make_checkpoint("llama", tmp_path, tokenizer=tokenizer))
    check_conversion(conversion)
    metadata = conversion.model.metadata
    if tokenizer == "qwen2":
        merges = list(metadata["tokenizer.ggml.merges"].data)
        faults = [
            change(conversion, merges=array(ValueType.STRING, merges[::-1])),
            change(conversion, pre=string("gpt-2")),
        ]
    else:
        faults = [change(conversion, scores=array(ValueType.FLOAT32, metadata["tokenizer.ggml.scores"].data[::-1]))]
    name = "tokenizer.model" if tokenizer == "spm" else "tokenizer.json"
    for fault in faults:
        with pytest.raises(
            InputError, match=rf"{name}: '.*' gives \[.*\], the converted tokenizer gives \[.*nothing is"
        ):
            check_conversion(fault)
