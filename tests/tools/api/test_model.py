"""`lltool.load` and its model on a tiny random model: texts and ids, lists, seeds, streams, threads, what is freed."""

import gc
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lltool
from lltool.engine.generate import generate
from lltool.engine.sampling import Sampler
from lltool.eval.divergence.divergence import divergence
from lltool.eval.scoring.perplexity import perplexity
from lltool.gguf.file_types import FileType
from lltool.gguf.metadata import Value, ValueType, f32, u32
from lltool.tools import cli
from tests.engine.tiny_gguf import VOCAB
from tests.eval.tiny_text_model import random_text, write_text_model

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends a text by itself; its line end begins texts that are scored."""
    keys = {
        "general.file_type": u32(FileType.F32),
        "tokenizer.ggml.eos_token_id": u32(0xFFFFFFFF),
        "tokenizer.ggml.bos_token_id": u32(VOCAB - 1),
        "tokenizer.ggml.add_bos_token": Value(ValueType.BOOL, False),
    }
    return write_text_model(tmp_path_factory.mktemp("api") / "tiny.gguf", **keys)


@pytest.fixture
def model(path: Path) -> Iterator[lltool.Model]:
    with lltool.load(path, threads=1, deterministic=True) as model:
        yield model


def test_repr_and_facts(model: lltool.Model, path: Path) -> None:
    assert repr(model) == "<lltool.Model tiny.gguf: gemma3, F32, context 512>"
    assert (model.path, model.architecture, model.type, model.context) == (path, "gemma3", "F32", 512)
    assert model.detokenize(model.tokenize("abc d")) == "abc d"


def test_options_reach_the_engine(path: Path) -> None:
    options = {"context": 128, "sequences": 3, "batch": 32, "threads": 1, "precision": "f32", "cache_type_k": "bf16"}
    with lltool.load(path, **options, cache_type_v="f32", deterministic=True, load_mode="none") as model:
        setup = model.engine.setup
    assert (model.context, setup.pages, setup.batch, setup.threads.decode.threads) == (128, 6, 32, 1)
    assert (setup.precision, setup.cache_type_k, setup.cache_type_v, setup.deterministic) == (
        "f32", "bf16", "f32", True,
    )  # fmt: skip


def test_generate_is_what_the_engine_generates(model: lltool.Model) -> None:
    ids = model.tokenize("Once")
    sampler = Sampler(1.5, 20, 0.9, 0.01, seed=7)
    wanted = "".join(token.text for token in generate(model.engine, ids, sampler=sampler, max_tokens=30))
    settings = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 7, "max_tokens": 30}
    assert len(wanted) > 10
    assert model.generate("Once", **settings) == wanted
    assert model.generate(ids, **settings) == wanted
    assert model.generate(np.array(ids), **settings) == wanted
    assert "".join(model.stream("Once", **settings)) == wanted
    assert model.generate("Once", **settings | {"seed": 8}) != wanted
    assert model.generate("Once", **settings, stop=wanted[4:6]) == wanted[:4]
    assert model.generate("Once", **settings, stop=["\0", wanted[4:6]]) == wanted[:4]


def test_a_list_is_as_its_texts_alone(path: Path) -> None:
    """In one batch, and with more prompts than the cache has room for; text i has the seed `seed` + i."""
    prompts = ["Once", "upon a time", [3, 4, 5], "there was", "a", "fox" * 20]
    with lltool.load(path, threads=1, deterministic=True, context=128) as model:
        alone = [model.generate(prompt, max_tokens=40, seed=5 + i) for i, prompt in enumerate(prompts)]
        assert model.generate(prompts, max_tokens=40, seed=5) == alone
        pages = model.engine.free_pages
        assert pages == 2
        assert model.generate([], seed=5) == []
        assert model.generate([prompts[0]], max_tokens=40, seed=5) == alone[:1]
        assert model.generate(["Once"] * 2, max_tokens=40, seed=5)[0] != alone[1]
    assert len(set(alone)) == len(alone)


def test_chat_uses_the_template(model: lltool.Model, tmp_path: Path) -> None:
    wanted = model.generate("user:Hello\n", temperature=0, max_tokens=12)
    assert model.chat(HELLO, temperature=0, max_tokens=12) == wanted
    assert "".join(model.chat(HELLO, stream=True, temperature=0, max_tokens=12)) == wanted
    (tmp_path / "other.jinja").write_text("> {{ messages[0].content }}")
    found = model.chat(HELLO, template=tmp_path / "other.jinja", temperature=0, max_tokens=12)
    assert found == model.generate("> Hello", temperature=0, max_tokens=12) != wanted


def test_a_stream_tells_why_it_ended_and_frees_the_cache(model: lltool.Model) -> None:
    room = model.engine.free_pages
    with model.stream("Once", max_tokens=5, seed=1) as stream:
        assert stream.reason == ""
        first = next(stream)
        assert model.engine.free_pages < room
        rest = list(stream)
    assert stream.text == "".join([first, *rest])
    assert (stream.reason, stream.detail, stream.timings.tokens) == ("length", "5 tokens were asked for", 5)
    assert list(stream) == []
    for end in ("close", "with", "drop"):
        stream = model.stream("Once", seed=1)
        next(stream)
        assert model.engine.free_pages < room
        if end == "close":
            stream.close()
        elif end == "with":
            with stream:
                pass
        else:
            del stream
        assert model.engine.free_pages == room, end


def test_an_unfinished_stream_leaves_room_for_other_texts(model: lltool.Model) -> None:
    """The cache has room for one whole context, of which the stream keeps its own text only."""
    wanted = model.generate("upon", max_tokens=100, seed=1)
    stream = model.stream("Once", seed=2)
    next(stream)
    assert model.generate("upon", max_tokens=100, seed=1) == wanted
    assert model.generate(["upon", "a"], max_tokens=100, seed=1)[0] == wanted
    next(stream)
    with pytest.raises(lltool.InputError, match="load the model with more sequences"):
        model.generate(["upon", "a"])  # each wants room for a whole context


def test_scores_are_those_of_the_functions(model: lltool.Model, path: Path, tmp_path: Path) -> None:
    text = random_text(300)
    (tmp_path / "text.txt").write_text(text)
    other = write_text_model(tmp_path / "other.gguf", seed=1)
    wanted = perplexity(model.engine, text, context=64, chunks=3)
    for given in (text, tmp_path / "text.txt", model.tokenize(text)):
        assert model.perplexity(given, context=64, chunks=3).perplexity == wanted.perplexity
    with lltool.load(other, threads=1, deterministic=True) as base:
        loss = divergence(base.engine, model.engine, text, context=64).mean
        assert loss > 0
        for named in (base, other, str(other)):
            assert model.divergence(named, text, context=64).mean == loss
        assert model.divergence(base, model.tokenize(text), context=64).mean == loss


def test_logprobs(model: lltool.Model) -> None:
    """Against the softmax of the logits after each token; the first follows the begin token."""
    ids = model.tokenize("abc abd")
    scored = model.logprobs("abc abd")
    assert model.tokenizer.bos is not None
    rows = model.engine.forward([(model.engine.new_sequence(), [model.tokenizer.bos, *ids[:-1]], "all")]).all()
    exact = rows.astype(np.float64) - np.log(np.exp(rows.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scored.logprobs, exact[np.arange(len(ids)), ids], rtol=1e-5)
    np.testing.assert_array_equal(scored.is_best, rows.argmax(axis=1) == ids)
    assert scored.ids.tolist() == ids
    assert scored.total == pytest.approx(scored.logprobs.sum())
    assert model.logprobs([model.tokenizer.bos, *ids]).ids.tolist() == ids


def test_closed_models_say_so(path: Path) -> None:
    model = lltool.load(path, threads=1)
    model.embed("abc")
    hidden = model._pooled(None)
    model.close()
    model.close()
    for call in (
        lambda: model.generate("a"),
        lambda: list(model.stream([1])),
        lambda: model.chat(HELLO),
        lambda: model.embed([1, 2]),
        lambda: model.logprobs([1, 2]),
        lambda: hidden.new_sequence(),
    ):
        with pytest.raises(lltool.InputError, match=r"tiny\.gguf is closed; load it again"):
            call()
    assert repr(model).startswith("<lltool.Model tiny.gguf")

    never_asked = lltool.load(path, threads=1)
    never_asked.close()
    with pytest.raises(lltool.InputError, match="is closed"):
        never_asked.embed([1, 2])


def test_bad_arguments(model: lltool.Model, path: Path) -> None:
    for call, message in (
        (lambda: lltool.load(path.with_name("tny.gguf")), r"no such file; did you mean .*tiny\.gguf"),
        (lambda: lltool.load(path, context=0), "context 0, wanted at least 1"),
        (lambda: model.generate("a" * 600), "the prompt has 600 tokens and the context 512"),
        (lambda: model.generate("a", temperature=-1), "temperature -1, wanted a number from 0"),
        (lambda: model.generate([1, 99]), "token id 99, wanted one from 0 to 95"),
        (lambda: model.embed("a", pooling="max"), "pooling 'max', wanted one of mean, last"),  # type: ignore[arg-type]
        (lambda: model.embed(""), "an empty text: wanted at least one token"),
        (lambda: model.logprobs("a" * 600), "do not fit the context"),
        (lambda: model.perplexity("abc"), "text: 3 tokens, wanted at least 1024"),
        (lambda: model.divergence(model, "abc"), "is base and model at once"),
        (lambda: model.divergence("none.gguf", "abc"), r"none\.gguf: no such file"),
        (lambda: model.divergence(path), "a model as base needs a text"),
    ):
        with pytest.raises(lltool.InputError, match=message):
            call()
    for call in (lambda: model.stream(["a", "b"]), lambda: model.generate([1.5]), lambda: model.generate("a", stop=1)):
        with pytest.raises(TypeError):
            call()


def test_threads_share_a_model(path: Path) -> None:
    """Each call gives what it gives alone, whatever the others do at the same time."""
    with lltool.load(path, threads=1, deterministic=True, sequences=4, context=128) as model:
        text = random_text(200)
        calls = [
            lambda: model.generate("Once", max_tokens=30, seed=1),
            lambda: model.generate(["upon", "a time"], max_tokens=20, seed=2),
            lambda: "".join(model.chat(HELLO, stream=True, max_tokens=20, seed=3)),
            lambda: model.perplexity(text, context=32).perplexity,
            lambda: model.logprobs("there was").total,
            lambda: model.embed(["a fox", "a dog"]).tolist(),
        ]
        wanted = [call() for call in calls]
        found: list[list[object]] = [[] for _ in calls]

        def work(index: int) -> None:
            for _ in range(5):
                found[index].append(calls[index]())

        workers = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for index, results in enumerate(found):
        assert results == [wanted[index]] * 5


def test_a_dropped_model_is_freed_at_once(path: Path) -> None:
    """Without the garbage collector's help: a notebook that loads a model in each cell does not fill the memory."""
    gc.disable()
    try:
        model = lltool.load(path, threads=1)
        model.generate(["a", "b"], max_tokens=3)
        model.chat(HELLO, max_tokens=3)
        model.embed("abc")
        engine, hidden, file = (
            weakref.ref(model.engine),
            weakref.ref(model._pooled(None)),
            weakref.ref(model.engine.file),
        )
        del model
        assert (engine(), hidden(), file()) == (None, None, None)
    finally:
        gc.enable()


def test_nothing_is_printed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lltool.load(path, threads=1) as model:
            model.generate("a", max_tokens=2)
            model.perplexity(random_text(100), context=32)
    assert capfd.readouterr() == ("", "")


def test_settings_of_the_file_count_where_none_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = {"general.sampling.temp": f32(0.0), "general.sampling.top_k": Value(ValueType.INT32, 7)}
    path = write_text_model(tmp_path / "shipped.gguf", **shipped)
    with lltool.load(path, threads=1, deterministic=True) as model:
        assert model.sampling == {"temperature": 0.0, "top_k": 7}
        greedy = model.generate("Once", max_tokens=20)
        assert greedy == model.generate("Once", max_tokens=20, seed=1) == model.generate("Once", max_tokens=20, top_k=3)
        hot = model.generate("Once", max_tokens=20, temperature=3, seed=1)
        sampler = Sampler(temperature=3, top_k=7, seed=1)
        wanted = generate(model.engine, model.tokenize("Once"), sampler=sampler, max_tokens=20)
        assert hot == "".join(token.text for token in wanted) != greedy
        with pytest.raises(TypeError, match="no setting 'warmth' of sampling; wanted max_tokens, stop, temperature"):
            model.generate("Once", warmth=3)  # type: ignore[call-overload]
    run = [
        "run",
        "-m",
        str(path),
        "--raw",
        "--no-display-prompt",
        "-p",
        "Once",
        "-n",
        "20",
        "-t",
        "1",
        "--deterministic",
    ]
    assert cli.main(run) == 0
    out, err = capsys.readouterr()
    assert out == greedy + "\n"
    assert "sampling settings from the model's file: top_k 7, temperature 0.0\n" in err
    assert cli.main([*run, "--temp", "0", "--top-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert out == greedy + "\n"
    assert "sampling settings" not in err


def test_every_sampler_gives_the_same_text_beside_others(path: Path) -> None:
    """Penalties and DRY look at the text of their own request, Mirostat and adaptive-p at its surprises."""
    changes: list[dict[str, Any]] = [
        {"repeat_penalty": 1.5, "frequency_penalty": 0.5},
        {"dry_multiplier": 1.0, "dry_allowed_length": 1},
        {"mirostat": 2, "mirostat_tau": 2.0},
        {"samplers": ["temperature", "adaptive_p"], "adaptive_target": 0.3},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    ]
    with lltool.load(path, threads=1, deterministic=True, sequences=4) as model:
        prompts = ["abc abc", "Once", "xyz"]
        plain = model.generate(prompts, max_tokens=30, seed=3)
        for settings in changes:
            found = model.generate(prompts, max_tokens=30, seed=3, **settings)
            assert found != plain, settings
            each = enumerate(prompts)
            assert found == [model.generate(text, max_tokens=30, seed=3 + i, **settings) for i, text in each], settings
