"""The off-grid twin computes what its model computes, with other weights."""

from pathlib import Path

import numpy as np

from lltool.engine.model import load_model
from lltool.gguf.metadata import u32
from tests.engine import tiny_gguf
from tests.offgrid import write_twin

NOT_OF_LLAMA = ("_q_norm", "_k_norm", "post_")


def test_the_twin_is_the_same_function(tmp_path: Path) -> None:
    keys = tiny_gguf.metadata("llama", attention__sliding_window=None, attention__sliding_window_pattern=None)
    arrays = {
        name: values for name, values in tiny_gguf.tensors().items() if not any(part in name for part in NOT_OF_LLAMA)
    }
    keys["general.file_type"] = u32(0)
    source = tiny_gguf.write_model(tmp_path / "a.gguf", keys, arrays)
    write_twin(source, twin := tmp_path / "b.gguf")
    logits = []
    for path in (source, twin):
        with load_model(path, executor="reference", context=64) as model:
            logits.append(model.evaluate(model.new_sequence(), [1, 5, 7, 2]))
            up = model.file.tensor("blk.0.ffn_up.weight").data()
            logits.append(up.view(np.float32 if path == source else np.float16).astype(np.float32))
    # The twin's matrices are rounded to 11 bits: 2^-12 a weight at most, some of which adds up over three layers.
    assert np.abs(logits[2] - logits[0]).max() < 0.01 * np.abs(logits[0]).max()
    assert np.abs(logits[3] / logits[1] - 1).max() > 0.3
