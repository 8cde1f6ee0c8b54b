"""`lltool embed`, `lltool rerank` and their calls in Python: against transformers, and what is refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lltool
from lltool.quant.convert.conversion import convert
from lltool.tools import cli
from tests.encoder_checkpoints import ENCODERS, RERANKERS, make_encoder
from tests.tiny_checkpoints import make_checkpoint

TEXTS = ["the old man went to the sea", "你好 мир", "Grüße 🚀 from the sea, again and again"]
QUERY = "who went to the sea?"
TOLERANCE = 2e-5  # of vectors of length 1, and of scores around 1: float32 in another order


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    kinds = {"encoder": ENCODERS["bert"], "reranker": RERANKERS["bert"], "roberta": RERANKERS["roberta"]}
    made = {name: make_encoder(kind, folder / name) for name, kind in kinds.items()}
    made["decoder"] = make_checkpoint("llama", folder / "decoder")
    return {name: convert(path, path / "model.gguf", "f32") for name, path in made.items()}


def tokenizer_of(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path.parent / "tokenizer.json"))


@pytest.fixture(scope="module")
def vectors(models: dict[str, Path]) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel

    oracle, tokenizer = AutoModel.from_pretrained(models["encoder"].parent), tokenizer_of(models["encoder"])
    with torch.no_grad():
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in TEXTS]
        rows = np.stack([oracle(each).last_hidden_state[0].mean(0).numpy() for each in ids])
    normal: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


def expected_scores(path: Path) -> NDArray[np.float64]:
    """The classifier's number for QUERY and each text, as a pair of texts."""
    import torch
    from transformers import AutoModelForSequenceClassification

    oracle, tokenizer = AutoModelForSequenceClassification.from_pretrained(path.parent), tokenizer_of(path)
    scores = []
    for text in TEXTS:
        pair = tokenizer.encode(QUERY, text)
        types = torch.tensor([pair.type_ids]).clamp(max=oracle.config.type_vocab_size - 1)
        with torch.no_grad():
            scores.append(oracle(torch.tensor([pair.ids]), token_type_ids=types).logits.item())
    return np.array(scores)


def test_every_format(
    models: dict[str, Path], vectors: NDArray[np.float32], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embed", "-m", str(models["encoder"]), "--precision", "f32"]
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS))
    assert cli.main([*command, "-f", str(tmp_path / "t.txt"), "-o", str(tmp_path / "v.npy")]) == 0
    assert np.abs(np.load(tmp_path / "v.npy") - vectors).max() < TOLERANCE
    assert cli.main([*command, "-f", str(tmp_path / "t.jsonl"), "--field", "body"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert np.abs(np.array([row["embedding"] for row in rows]) - vectors).max() < TOLERANCE
    assert cli.main([*command, "-p", TEXTS[0], "-p", TEXTS[1], "-o", str(tmp_path / "v.csv")]) == 0
    found = np.array([line.split(",") for line in (tmp_path / "v.csv").read_text().splitlines()], np.float32)
    assert np.abs(found - vectors[:2]).max() < TOLERANCE


def test_pooling_lengths_and_truncation(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["embed", "-m", str(models["encoder"]), "-f", "-", "--format", "csv", "--no-normalize", "-c", "40"]

    def vector(text: str, *options: str) -> NDArray[np.float64]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert cli.main([*command, *options]) == 0
        return np.array(capsys.readouterr().out.split(","), np.float64)

    assert abs(np.linalg.norm(vector("the sea")) - 1) > 0.1
    assert np.abs(vector("the sea", "--pooling", "cls") - vector("the sea")).max() > 0.1
    first = "the " * 38  # with the tokens at both ends, a context
    np.testing.assert_array_equal(vector(first + "sea sea", "--truncate"), vector(first))


@pytest.mark.parametrize("name", ["reranker", "roberta"])
def test_scores_of_pairs(models: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = expected_scores(models[name])
    command = ["rerank", "-m", str(models[name]), "-q", QUERY, "--precision", "f32"]
    for text in TEXTS:
        command += ["-d", text]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["documents"]
    assert [each["index"] for each in found] == np.argsort(-wanted).tolist()
    assert [each["text"] for each in found] == [TEXTS[each["index"]] for each in found]
    scores = np.array([each["score"] for each in found])
    assert np.abs(scores - np.sort(wanted)[::-1]).max() < TOLERANCE * np.abs(wanted).max()
    assert cli.main([*command, "--top", "1", "--probabilities"]) == 0
    best = int(np.argmax(wanted))
    assert capsys.readouterr().out == f"{1 / (1 + np.exp(-wanted[best])):9.4f}  {TEXTS[best]}\n"


def test_json(models: dict[str, Path], vectors: NDArray[np.float32], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", "-m", str(models["encoder"]), "--precision", "f32", "-p", TEXTS[0], "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["texts"] == TEXTS[:1]
    assert np.abs(np.array(report["embeddings"]) - vectors[:1]).max() < TOLERANCE


def test_python(models: dict[str, Path], vectors: NDArray[np.float32]) -> None:
    with lltool.load(models["encoder"], precision="f32") as model:
        assert np.abs(model.embed(TEXTS) - vectors).max() < TOLERANCE
        np.testing.assert_array_equal(model.embed(TEXTS[1]), model.embed(TEXTS)[1])
        assert np.abs(model.embed(TEXTS[0], pooling="last") - vectors[0]).max() > 0.01
    with lltool.load(models["reranker"], precision="f32") as model:
        wanted = expected_scores(models["reranker"])
        assert np.abs(model.rerank(QUERY, TEXTS) - wanted).max() < TOLERANCE * np.abs(wanted).max()


REFUSED: list[tuple[str, Callable[[str], list[str]], str]] = [
    ("encoder", lambda m: ["run", m, "hello"], "an encoder (bert) gives vectors of texts, not logits; lltool embed"),
    ("encoder", lambda m: ["chat", m, "-p", "x"], "an encoder (bert) gives vectors of texts"),
    ("encoder", lambda m: ["perplexity", "-m", m, "-f", __file__], "an encoder (bert) gives vectors of texts"),
    ("encoder", lambda m: ["rerank", "-m", m, "-q", "a", "-d", "b"], "an encoder without a classifier, not a reranker"),
    ("decoder", lambda m: ["rerank", "-m", m, "-q", "a", "-d", "b"], "a decoder without a classifier, not a reranker"),
    ("reranker", lambda m: ["embed", "-m", m, "-p", "a"], "a reranker gives scores of documents, not vectors"),
    ("reranker", lambda m: ["run", m, "hello"], "a reranker gives scores of documents, not logits of tokens"),
    ("encoder", lambda m: ["embed", "-m", m, "-p", " "], "the command line: an empty text"),
    ("encoder", lambda m: ["embed", "-m", m, "-p", "the " * 400], "402 tokens do not fit the context of 320"),
    ("reranker", lambda m: ["rerank", "-m", m, "-q", "a", "-d", "b " * 400], "do not fit the context of 320"),
    ("reranker", lambda m: ["rerank", "-m", m, "-q", "a " * 400, "-d", "b"], "leaves no room for documents"),
    ("encoder", lambda m: ["embed", "-m", m], "no texts are given"),
    ("encoder", lambda m: ["embed", "-m", m, "-p", "a", "-o", "x.bin"], "wanted a name that ends in .npy, .jsonl"),
    ("decoder", lambda m: ["embed", "-m", m, "-p", "a", "--pooling", "cls"], "pooling 'cls', wanted one of mean, last"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "command", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_bad_input_is_one_line(
    models: dict[str, Path], model: str, command: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(str(models[model]))) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "error" in line]
    assert out == ""
    assert len(lines) == 1
    assert message in lines[0]
