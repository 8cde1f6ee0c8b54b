"""all-MiniLM-L6-v2: its file against llama.cpp's, and its vectors against transformers', also quantized."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import lltool
from lltool.engine.embed import embed
from lltool.engine.model import load_model
from lltool.engine.rank import encode_text
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.conversion import convert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = "The Tempest was the last play that Shakespeare wrote alone, and it was printed first in 1623. "
TEXTS = [
    "Hello",
    WORDS,
    WORDS * 24,
    "你好，世界。今天天气很好，我们去公园散步吧。",
    "量子计算是一种遵循量子力学规律调控量子信息单元进行计算的新型计算模式。" * 5,
    "🚀🎉 emoji 😀 👨‍👩‍👧 🇩🇪",
    "Grüße aus Köln, à bientôt, señor; привет мир, 한국어, こんにちは",
    "def f(x):\n    return x ** 2  # code",
]

# The sha256 of all tensors' names, types, shapes and bytes, by name: of convert_hf_to_gguf.py's file, and of what
# libllama's llama_model_quantize makes of it (llama.cpp in llama-cpp-python 0.3.36, node-llama-cpp 3.22.1).
DIGESTS = {
    "F16": "c80e6d8a7cc358e255ab1c7b61a12481e124275ca2fae0dc6244350301e51f78",
    "Q8_0": "e14ffbdec4eb34d8ec0bcb59bad932efea6c33f34cb505aed9258d58733e39de",
    "Q4_K_M": "7e55cb901b02276635aa784ba4b87ba6d9b3e627b2d65528dedc1f0969eadb5a",
}
# The least cosine. Rounding weights to 8 bits and to 4 costs a model of this size so much.
LEAST = {"F16": 0.9999, "Q8_0": 0.999, "Q4_K_M": 0.96}


@pytest.fixture(scope="module")
def folder(real_model: Callable[[str], Path]) -> Path:
    return real_model("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[list[list[int]], NDArray[np.float32]]:
    """The ids of TEXTS, and the vectors that the checkpoint's modules describe: means of states, of length 1."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer, model = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoModel.from_pretrained(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    with torch.no_grad():
        means = np.stack([model(torch.tensor([each])).last_hidden_state[0].mean(dim=0).numpy() for each in ids])
    return ids, means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("type", DIGESTS)
def test_vectors_and_files(
    folder: Path, expected: tuple[list[list[int]], NDArray[np.float32]], type: str, tmp_path: Path
) -> None:
    path = convert(folder, tmp_path / "f16.gguf", "f16")
    if type != "F16":
        path = lltool.quantize(path, type, tmp_path / "m.gguf")
    digest = hashlib.sha256()
    with open_gguf(path) as file:
        for tensor in sorted(file.tensors, key=lambda tensor: tensor.name):
            digest.update(f"{tensor.name} {tensor.type.name} {tensor.shape}\n".encode())
            digest.update(tensor.data().tobytes())
    assert digest.hexdigest() == DIGESTS[type]
    with load_model(path, output="pooled", deterministic=True, threads=2) as model:
        ids = [encode_text(model, text) for text in TEXTS]
        assert ids == expected[0]
        found = embed(model, ids)
        for each, vector in zip(ids, found, strict=True):
            np.testing.assert_array_equal(embed(model, [each])[0], vector)
    assert (found * expected[1]).sum(axis=1).min() > LEAST[type]
