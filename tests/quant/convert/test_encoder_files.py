"""Files of encoders: the modules of sentence-transformers, RoBERTa's pairs, Qwen3's vectors and scores, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.embed import embed
from lltool.engine.model import load_model
from lltool.engine.rank import encode_pair, encode_text, rank
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.conversion import convert
from lltool.quant.convert.export import export
from lltool.quant.convert.families.registry import find_family
from tests.encoder_checkpoints import ENCODERS, RERANKERS, make_encoder
from tests.tiny_checkpoints import make_checkpoint

MODULES = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Dense", "Dense")]


def write_modules(folder: Path, pooling: dict[str, Any], dense: list[tuple[int, int]] | None = None) -> list[Any]:
    """The files of sentence-transformers; returns the matrices of dense layers."""
    from safetensors.numpy import save_file

    named = MODULES[: 2 + len(dense or [])]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in named]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    matrices = []
    for (place, _), (inside, outside) in zip(MODULES[2:], dense or [], strict=False):
        (folder / place).mkdir(exist_ok=True)
        settings = {"in_features": inside, "out_features": outside, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"  # type: ignore[assignment]
        (folder / place / "config.json").write_text(json.dumps(settings))
        matrix = np.random.default_rng(inside).standard_normal((outside, inside)).astype(np.float32) / inside**0.5
        save_file({"linear.weight": matrix}, folder / place / "model.safetensors")
        matrices.append(matrix)
    return matrices


OLD = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": False}


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        (OLD | {"pooling_mode_mean_tokens": True}, 1),
        (OLD | {"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_the_pooling_is_that_of_the_modules(tmp_path: Path, pooling: dict[str, Any], number: int) -> None:
    folder = make_encoder(ENCODERS["eurobert"], tmp_path)
    write_modules(folder, pooling)
    with open_gguf(convert(folder, folder / "m.gguf")) as file:
        assert file.metadata["eurobert.pooling_type"].data == number
        assert file.metadata["eurobert.attention.causal"].data is False


def test_embedding_gemma_has_its_dense_layers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    folder = make_encoder(ENCODERS["gemma-embedding"], tmp_path)
    first, second = write_modules(folder, {"pooling_mode": "mean"}, [(64, 96), (96, 64)])
    path = convert(folder, folder / "m.gguf", "f32")
    ids = np.arange(5, 90)
    with torch.no_grad():
        pooled = AutoModel.from_pretrained(folder)(torch.tensor(ids[None])).last_hidden_state[0].numpy().mean(axis=0)
    with open_gguf(path) as file:
        keys = [file.metadata[f"gemma-embedding.dense_{n}_feat_{end}"].data for n in (2, 3) for end in ("in", "out")]
    assert keys == [64, 96, 96, 64]
    with load_model(path, output="pooled", precision="f32") as model:
        (found,) = embed(model, [ids], normalize=False)
    wanted = second @ (first @ pooled)
    assert np.abs(found - wanted).max() < 1e-4 * np.ptp(wanted)


def test_what_the_modules_cannot_say(tmp_path: Path) -> None:
    folder = make_encoder(ENCODERS["eurobert"], tmp_path)
    write_modules(folder, {"pooling_mode": "mean"}, [(64, 32)])
    with pytest.raises(InputError, match=r"modules\.json: 1 dense layers after the pooling, but files"):
        convert(folder, tmp_path / "m.gguf")
    write_modules(folder, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(InputError, match=r"1_Pooling/config\.json: pooling max_tokens and mean, wanted one of mean"):
        convert(folder, tmp_path / "m.gguf")
    (folder / "modules.json").write_text("{}")
    with pytest.raises(InputError, match=r"modules\.json: found a JSON dict, wanted a list"):
        convert(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_positions_types_and_pairs_of_roberta(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    folder = make_encoder(RERANKERS["roberta"], tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, end = "<|endoftext|>", "<|im_end|>"
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, tokenizer.token_to_id(end)), (begin, tokenizer.token_to_id(begin)), trim_offsets=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": begin, "cls_token": begin, "eos_token": end, "sep_token": end}
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    path = convert(folder, folder / "m.gguf", "f16")
    with open_gguf(path) as file:
        tensors = {tensor.name: tensor for tensor in file.tensors}
        assert tensors["position_embd.weight"].shape == (318, 64)
        assert {tensors[f"{name}.weight"].type for name in ("position_embd", "token_types")} == {GGMLType.F32}
        assert file.metadata["bert.context_length"].data == 318
        assert file.metadata["tokenizer.ggml.token_type_count"].data == 1
        assert file.metadata["bert.pooling_type"].data == 4
    with load_model(path, output="pooled") as model:
        assert encode_text(model, "the sea") == tokenizer.encode("the sea").ids
        ids, types = encode_pair(model, "the sea", "an old man")
        assert ids == tokenizer.encode("the sea", "an old man").ids
        assert set(types) == {0}


def test_qwen3_embedding(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    folder = make_checkpoint("qwen3", tmp_path)
    write_modules(folder, {"pooling_mode": "lasttoken"})
    path, ids = convert(folder, folder / "m.gguf", "f32"), np.arange(5, 90)
    with torch.no_grad():
        wanted = AutoModel.from_pretrained(folder)(torch.tensor(ids[None])).last_hidden_state[0, -1].numpy()
    with load_model(path, output="pooled", precision="f32") as model:
        (found,) = embed(model, [ids], normalize=False)
        assert np.abs(found - wanted).max() < 1e-4 * np.ptp(wanted)
    with load_model(path) as model:  # a decoder still gives logits
        assert model.evaluate(model.new_sequence(), [5, 6]).shape == (384,)


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_reranker(tmp_path: Path, tied: bool) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint("qwen3", tmp_path / "Qwen3-Reranker-tiny", tie_word_embeddings=tied)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = convert(folder, folder / "m.gguf", "f32")
    prompt = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "web search query, retrieve relevant passages that answer the query\n<Query>: who?\n<Document>: {}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    oracle, documents, wanted = AutoModelForCausalLM.from_pretrained(folder), ["the old man", "a {query} fox"], []
    for document in documents:
        ids = torch.tensor([tokenizer.encode(prompt.replace("{}", document)).ids])
        with torch.no_grad():
            logits = oracle(ids).logits[0, -1][[tokenizer.token_to_id(word) for word in ("no", "yes")]]
        wanted.append(torch.softmax(logits, 0)[1].item())
    with load_model(path, output="pooled", precision="f32", sequences=2) as model:
        assert np.abs(rank(model, "who?", documents) - wanted).max() < 1e-4
    with pytest.raises(InputError, match="a reranker gives scores of documents, not logits"):
        load_model(path)


def test_a_classifier_with_several_labels(tmp_path: Path) -> None:
    path = convert(make_encoder(RERANKERS["modern-bert, mean"], tmp_path), tmp_path / "m.gguf", "f32")
    with open_gguf(path) as file:
        assert list(file.metadata["modern-bert.classifier.output_labels"].data) == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert file.metadata["modern-bert.classifier.pooling_type"].data == 1
    wanted = "a classifier with 3 labels, wanted a reranker's one, or yes and no"
    with load_model(path, output="pooled") as model, pytest.raises(InputError, match=wanted):
        rank(model, "a", ["b"])


def test_a_dense_bert_is_found_by_its_classes_and_not_exported(tmp_path: Path) -> None:
    kinds = {"BertModel": "bert", "JinaBertForMaskedLM": "jina-bert-v2", "BertForSequenceClassification": "bert"}
    for model, architecture in kinds.items():
        family, _ = find_family({"architectures": [model], "model_type": "bert"}, "config.json")
        assert (family.architecture, model in family.models) == (architecture, True)
    path = convert(make_encoder(ENCODERS["bert"], tmp_path), tmp_path / "m.gguf", "f32")
    with pytest.raises(InputError, match="BertModel cannot be exported: this version exports decoders only"):
        export(path, tmp_path / "out")
