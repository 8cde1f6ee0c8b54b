"""Diversity and relevance of texts, compared with hand counts and the libraries' own calls; malformed prompts."""

import json
from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path

import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.tasks.generation import (
    Measure,
    Prompt,
    Sampling,
    distinct,
    find_scorers,
    generate_samples,
    measure_samples,
    read_prompts,
)
from lltool.gguf.errors import InputError
from tests.eval.tiny_text_model import write_text_model

PROMPTS = [Prompt("ab", (), ("x y",)), Prompt(None, ({"role": "user", "content": "Hi"},), ("z",))]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with load_model(write_text_model(tmp_path / "tiny.gguf"), context=64, precision="f32") as model:
        yield model


def test_distinct() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b"], []]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4  # ab, ba, ab; ab
    assert isnan(distinct(texts, 5))


def test_a_prompt_without_a_value_is_left_out() -> None:
    found = Measure.of([1.0, nan, 3.0])
    assert (found.mean, found.error) == (2.0, pytest.approx(1.0))
    assert isnan(Measure.of([nan]).mean)


def test_measures_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    samples = [["The cat sat on the mat.", "The cat sat on a mat."], ["Yes, I do.", "Yes, I do."]]
    references = [("A cat sat there.",), ("Yes.", "I do.")]
    found = measure_samples(samples, references, find_scorers(PROMPTS))
    assert list(found) == ["distinct-1", "distinct-2", "distinct-3", "self-BLEU", "chrF"]
    assert found["distinct-1"].values == (8 / 14, 5 / 10)  # The cat sat on the mat . / a; Yes , I do .
    first = sacrebleu.sentence_bleu(samples[0][0], [samples[0][1]]).score
    second = sacrebleu.sentence_bleu(samples[0][1], [samples[0][0]]).score
    assert found["self-BLEU"].values == (pytest.approx((first + second) / 2), pytest.approx(100))
    chrf = [sacrebleu.sentence_chrf(text, list(references[0])).score for text in samples[0]]
    assert found["chrF"].values[0] == pytest.approx(sum(chrf) / 2)
    alone = measure_samples([["one"], ["two"]], [(), ()], find_scorers(PROMPTS))
    assert list(alone) == ["distinct-1", "distinct-2", "distinct-3"]


@pytest.mark.extra
def test_bert_score_with_a_model_on_disk(tmp_path: Path) -> None:
    bert_score = pytest.importorskip("bert_score")
    folder = write_bert(tmp_path / "bert")
    samples, references = [["the cat", "a dog"], ["sat"]], [("the cat",), ("a mat", "sat")]
    found = measure_samples(samples, references, find_scorers(PROMPTS, folder))["BERTScore"]
    *_, f1 = bert_score.score(["the cat", "a dog", "sat"], ["the cat", "the cat", "sat"], str(folder), num_layers=2)
    assert found.values == (pytest.approx(float(f1[:2].mean()), abs=1e-5), pytest.approx(1, abs=1e-5))
    assert found.values[0] < 0.99


def write_bert(folder: Path) -> Path:
    """A random BERT of two layers."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "mat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: id for id, word in enumerate(words)}, model_max_length=512).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def test_samples_depend_on_seed_prompt_and_number(model: Model) -> None:
    sampling = Sampling(samples=3, max_tokens=6, temperature=1.0, seed=5)
    found = generate_samples(model, PROMPTS, sampling)
    assert found == generate_samples(model, PROMPTS, sampling)
    assert len({text for texts in found for text in texts}) == 6
    assert found[0] == generate_samples(model, PROMPTS[:1], sampling)[0]
    assert found != generate_samples(model, PROMPTS, Sampling(3, 6, 1.0, 6))


def test_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "ab", "reference": "x y"},
        {"messages": [{"role": "user", "content": "Hi"}], "references": ["z"]},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert read_prompts(path) == PROMPTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts"),
        ("{", "line 1: not JSON"),
        ('{"prompt": "a"}\n[1]', r"line 2: '\[1\]', wanted a prompt"),
        ('{"prompt": 3}', "wanted a prompt"),
        ('{"prompt": "a", "messages": [{"role": "user"}]}', "wanted a prompt"),
        ('{"messages": []}', "or messages"),
        ('{"prompt": "a", "references": [3]}', r"line 1: references \[3\], wanted a text or several"),
        ('{"prompt": "a"}\n{"prompt": "b", "reference": "c"}', "some prompts have references and some have none"),
    ],
)
def test_malformed_prompts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=f"prompts.jsonl.*{message}"):
        read_prompts(path)


def test_a_bert_model_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    with pytest.raises(InputError, match=r"none: no model for BERTScore; wanted a folder with config\.json"):
        find_scorers(PROMPTS, tmp_path / "none")
    with pytest.raises(InputError, match="BERTScore compares with references, and the prompts have none"):
        find_scorers([Prompt("a", (), ())], tmp_path)
