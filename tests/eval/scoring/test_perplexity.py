"""Perplexity against exact values of a toy model, and against Hugging Face's loop."""

import re
from math import exp, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.scoring.perplexity import Method, MethodName, Scored, cut_windows, measure_tokens, perplexity, pool
from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf
from tests.conftest import GoldenFile
from tests.eval.scoring.toy_model import VOCAB, ToyLogits, ToyModel, toy_logits
from tests.tiny_checkpoints import make_checkpoint


def expected(ids: list[int], context: int, bos: int | None, first: int) -> list[float]:
    """Negative log-likelihoods of the tokens after index `first` of each window, by the definition, one at a time."""
    nll = []
    for start in range(0, len(ids) // context * context, context):
        window = ids[start : start + context]
        if bos is not None:
            window[0] = bos
        for position in range(first, context - 1):
            logits = toy_logits(window[position], position).astype(float)
            nll.append(log(np.exp(logits).sum()) - logits[window[position + 1]])
    return nll


@pytest.mark.parametrize("score", ["half", "all"])
@pytest.mark.parametrize("batch", [4, 7, 20, 45, 1000])
@pytest.mark.parametrize("bos", [None, 5])
def test_equals_the_definition_for_every_batch_size(batch: int, bos: int | None, score: Scored) -> None:
    ids = np.random.default_rng(1).integers(0, VOCAB, 107).tolist()
    model: Any = ToyModel(batch, bos)
    seen: list[tuple[int, int]] = []
    show = lambda done, total, _: seen.append((done, total))  # noqa: E731
    result = perplexity(model, ids, context=20, score=score, progress=show)
    first = 0 if score == "all" else 10
    nll = np.array(expected(ids, 20, bos, first))
    each = 19 - first
    assert result.scored == nll.size == 5 * each
    assert result.perplexity == pytest.approx(exp(nll.mean()), rel=1e-6)
    assert result.error == pytest.approx(exp(nll.mean()) * nll.std() / np.sqrt(nll.size - 1), rel=1e-6)
    assert result.running == pytest.approx([exp(nll[: each * n].mean()) for n in range(1, 6)], rel=1e-6)
    assert -result.losses.log_probs == pytest.approx(nll, rel=1e-6)
    assert result.losses.tokens.tolist() == [ids[at] for at in result.losses.positions]
    assert result.losses.positions[:each].tolist() == list(range(first + 1, 20))
    frame = result.to_pandas()
    assert list(frame) == ["position", "token", "log_prob", "weight"]
    assert exp(-np.average(frame.log_prob, weights=frame.weight)) == pytest.approx(result.perplexity)
    assert frame.token.tolist() == [ids[at] for at in frame.position]
    assert model.largest <= batch
    assert seen == [(done, 5) for done in range(1, 6)]


def llama_strided(ids: list[int], context: int, stride: int) -> tuple[list[float], list[int]]:
    """Running values and scored positions, from the loops of llama.cpp's perplexity_v2 and its cache size."""
    size = (context + stride // 2 + 255) // 256 * 256
    total, running, places = 0.0, [], []
    for i in range((len(ids) - size + stride - 1) // stride):
        for j in range(size - stride - 1, size - 1):
            logits = toy_logits(ids[i * stride + j], j).astype(float)
            places.append(i * stride + j + 1)
            total += log(np.exp(logits).sum()) - logits[ids[places[-1]]]
        running.append(exp(total / len(places)))
    return running, places


@pytest.mark.parametrize(("context", "stride"), [(100, 60), (256, 256), (200, 1), (300, 100)])
def test_strided_equals_llama_perplexity_with_ppl_stride(context: int, stride: int) -> None:
    size = 1030 if stride > 1 else 530
    ids = np.random.default_rng(2).integers(0, VOCAB, size).tolist()
    model: Any = ToyModel(512, bos=5, pages=9)
    result = perplexity(model, ids, context=context, method="strided", stride=stride)
    running, places = llama_strided(ids, context, stride)
    assert result.running == pytest.approx(running, rel=1e-6)
    assert result.losses.positions.tolist() == places


def hugging_face(model: Any, ids: Any, context: int, stride: int) -> float:
    """Perplexity by the loop of Hugging Face's guide: labels of -100 are left out of the mean that the model gives."""
    total = count = end_before = 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + context, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : end_before - end] = -100
        counted = int((labels != -100).sum()) - 1
        if counted:  # the guide's loop would multiply by 0, and give NaN for a window of one token
            total += model(ids[:, begin:end], labels=labels).loss.item() * counted
        count += counted
        end_before = end
        if end == ids.shape[1]:
            break
    return exp(total / count)


def test_hf_equals_transformers_in_the_loop_of_hugging_faces_guide(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from lltool.quant.convert.conversion import convert

    make_checkpoint("llama", tmp_path)
    path = convert(tmp_path, tmp_path / "model.gguf", outtype="f32")
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    # (tokens, context, stride): the last window ends with the text, one token before its end, one token after it; no
    # overlap; a text of one window; a stride of one token
    cases = [(112, 64, 16), (111, 64, 16), (113, 64, 16), (129, 64, 64), (50, 64, 7), (20, 8, 1)]
    with torch.no_grad(), load_model(path, context=64, batch=100, sequences=3, precision="f32") as model:
        for size, context, stride in cases:
            ids = np.random.default_rng(0).integers(0, model.config.vocab, size).tolist()
            result = perplexity(model, ids, context=context, method="hf", stride=stride)
            wanted = hugging_face(oracle, torch.tensor([ids]), context, stride)
            assert result.perplexity == pytest.approx(wanted, rel=1e-6)
            unpredicted = range(0, size, stride) if stride == context else [0]
            assert result.losses.positions.tolist() == [at for at in range(size) if at not in unpredicted]


def test_bits_divide_by_the_bytes_and_words_of_scored_tokens() -> None:
    model: Any = ToyModel(64, bos=10)
    text = "ab cd  e fgh ab ab ab gh"
    ids = [" abcdefghij".index(character) for character in text]
    result = perplexity(model, ids, context=8)
    # Scored: places 5 to 7 of each of three windows, here in brackets.
    #   [ab cd] -> "ab cd[  e]", " fgh [ab ]", "ab ab[ gh]"
    assert (result.scored, result.bytes, result.words) == (9, 9, 3)
    total = -result.losses.log_probs.sum() / log(2)
    assert result.bits_per_byte == pytest.approx(total / 9)
    assert result.bits_per_word == pytest.approx(total / 3)
    assert result.bits_per_word == pytest.approx(np.log2(result.perplexity) * 9 / 3)


def test_tokens_are_measured_in_utf8_and_words_belong_to_their_first_byte() -> None:
    pieces = [b"<s>", b" Gr\xc3", b"\xbc\xc3\x9f", b"e  a", b"us\n\xe4\xbd\xa0", b" ", b"K"]
    toy: Any = SimpleNamespace(piece=lambda id: pieces[id], is_control=lambda id: id == 0, add_space_prefix=False)
    sizes, words = measure_tokens(toy, [0, 1, 2, 3, 4, 5, 6, 6])
    assert sizes.tolist() == [0, 4, 3, 4, 6, 1, 1, 1]
    assert words.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]  # Grüße, aus, 你, KK
    toy.add_space_prefix = True
    sizes, words = measure_tokens(toy, [0, 1, 5])
    assert (sizes.tolist(), words.tolist()) == ([0, 3, 1], [0, 1, 0])
    assert [part.tolist() for part in measure_tokens(toy, [])] == [[], []]


@pytest.mark.parametrize("vocabulary", ["llama-spm", "llama-bpe", "gpt-2", "qwen2", "deepseek-llm"])
def test_tokens_of_a_text_are_its_bytes_and_words(golden_file: GoldenFile, vocabulary: str) -> None:
    text = golden_file("text/eval_en.txt").read_text()[:5000] + "  \tGrüße,\r\n\n你好 мир\u3000🦙 \x0b\x0c x  "
    with open_gguf(golden_file(f"vocab/ggml-vocab-{vocabulary}.gguf")) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
        sizes, words = measure_tokens(tokenizer, tokenizer.encode(text))
    assert sizes.sum() == len(text.encode())
    assert words.sum() == len(text.encode().split())


def test_texts_are_pooled_token_by_token() -> None:
    ids = np.random.default_rng(3).integers(0, VOCAB, 200).tolist()
    model: Any = ToyModel(64)
    whole = perplexity(model, ids, context=20)
    parts = [perplexity(model, ids[:60], context=20), perplexity(model, ids[60:], context=20)]
    pooled = pool(parts)
    assert pooled.perplexity == pytest.approx(whole.perplexity)
    assert pooled.error == pytest.approx(whole.error)
    assert (pooled.scored, pooled.bytes) == (whole.scored, whole.bytes) == (90, 90)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sliding"}, "method 'sliding', wanted one of llama, strided, hf"),
        ({"score": "third"}, "score 'third', wanted one of half, all"),
        ({"stride": 5}, "stride 5 goes with method strided or hf"),
        ({"method": "hf", "score": "all"}, "score all goes with method llama"),
        ({"method": "hf", "stride": 21}, "stride of 21 tokens, wanted 1 to the context of 20"),
        ({"method": "strided", "stride": 0}, "stride of 0 tokens, wanted 1 to the context of 20"),
        ({"method": "hf", "context": 3}, "context of 3 tokens: wanted at least 4"),
        ({"method": "strided"}, "novel: 100 tokens, wanted at least 512 (two windows of 256)"),
    ],
)
def test_bad_methods_are_refused(options: dict[str, Any], message: str) -> None:
    model: Any = ToyModel(64)
    with pytest.raises(InputError, match=re.escape(message)):
        perplexity(model, [1] * 100, name="novel", **{"context": 20, **options})


def test_hf_wants_three_tokens() -> None:
    model: Any = ToyModel(64)
    assert perplexity(model, [1, 2, 3], context=20, method="hf").scored == 2
    with pytest.raises(InputError, match="novel: 2 tokens, wanted at least 3; give"):
        perplexity(model, [1, 2], context=20, method="hf", name="novel")


@pytest.mark.parametrize(("method", "counts"), [("llama", False), ("strided", False), ("hf", True)])
def test_only_hf_counts_a_line_end_at_the_end(method: MethodName, counts: bool) -> None:
    tokenizer: Any = SimpleNamespace(encode=lambda text: [ord(character) for character in text])
    assert Method(method).encode(tokenizer, "a\n\n") == [97, 10, 10][: 2 + counts]


def test_chunks_limits_the_windows() -> None:
    ids = np.random.default_rng(1).integers(0, VOCAB, 100).tolist()
    model: Any = ToyModel(64)
    short = perplexity(model, ids, context=20, chunks=2)
    assert short.running == perplexity(model, ids, context=20).running[:2]


@pytest.mark.parametrize("loss", [np.nan, np.inf, 710])
def test_models_with_nan_or_too_large_losses_are_named(loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = ToyModel(64)
    scores = np.zeros((3, 9))
    scores[1, 4] = -loss * 18  # the mean over two windows is `loss`
    monkeypatch.setattr(ToyLogits, "score", lambda *_: scores.ravel())
    with pytest.raises(InputError, match=r"toy\.gguf: the loss is (nan|inf|710\.0) in chunk 2"):
        perplexity(model, [1] * 60, context=20)


def test_text_shorter_than_two_windows_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"39 tokens.*at least 40"):
        cut_windows([1] * 39, 20, None)
    assert cut_windows([1] * 40, 20, None).shape == (2, 20)
