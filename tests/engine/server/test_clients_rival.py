"""Clients that others have written, unchanged, with a real model: what they return is what the engine gives here.

Those of Python come with `pip install lltool[clients]`; OpenAI's for JavaScript is found where NODE_PATH says.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lltool.engine.generate import generate
from lltool.engine.model import load_model
from lltool.engine.sampling import Sampler
from lltool.engine.text.chat import read_chat_template
from tests.engine.server.load import start_server

pytestmark = [pytest.mark.rival, pytest.mark.slow]

QUESTION = "What is the capital of Japan?"
BEGUN = "One, two, three, four,"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
COUNT = 8


@dataclass(frozen=True)
class Expected:
    """What the engine gives in this process: a greedy answer, a greedy continuation, and the first log-probability."""

    chat: str
    continuation: str
    logprob: float


@pytest.fixture(scope="module")
def path(real_model: Callable[[str], Path]) -> Path:
    return real_model("smollm2-q4_1")


@pytest.fixture(scope="module")
def url(path: Path) -> Iterator[str]:
    process, address = start_server([path], "--alias", "smol", "-c", "1024", "--parallel", "2", "--deterministic")
    yield address
    process.terminate()
    assert process.wait() == 143


@pytest.fixture(scope="module")
def expected(path: Path) -> Expected:
    with load_model(path, context=1024, deterministic=True) as model:
        template = read_chat_template(model.file, model.tokenizer)
        chat = template.encode(MESSAGES)
        plain = model.tokenizer.with_begin(model.tokenizer.encode(BEGUN))

        def text(ids: list[int]) -> str:
            return "".join(t.text for t in generate(model, ids, sampler=Sampler(temperature=0), max_tokens=COUNT))

        row = model.forward([(model.new_sequence(), np.array(chat, np.int32), "last")]).all()[0].astype(np.float64)
        template.close()
        return Expected(text(chat), text(plain), float(row.max() - np.log(np.exp(row - row.max()).sum()) - row.max()))


def test_openai(url: str, expected: Expected) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    common: dict[str, Any] = {"model": "smol", "temperature": 0}
    chat = client.chat.completions.create(
        **common, messages=MESSAGES, max_completion_tokens=COUNT, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].message.content == expected.chat
    first = chat.choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert first.top_logprobs[0].token == first.token
    stream = client.chat.completions.create(
        **common, messages=MESSAGES, max_tokens=COUNT, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.chat
    assert chunks[-1].usage.completion_tokens == COUNT
    with client.chat.completions.stream(**common, messages=MESSAGES, max_tokens=COUNT) as helper:
        assert helper.get_final_completion().choices[0].message.content == expected.chat
    completion = client.completions.create(**common, prompt=BEGUN, max_tokens=COUNT, logprobs=2)
    assert completion.choices[0].text == expected.continuation
    assert len(completion.choices[0].logprobs.token_logprobs) == COUNT
    several = client.completions.create(**common, prompt=[BEGUN, QUESTION], max_tokens=COUNT)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == expected.continuation
    assert client.models.retrieve("smol").id == client.models.list().data[0].id == "smol"
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(**common, messages=[])


def test_openai_responses(url: str, expected: Expected) -> None:
    client = pytest.importorskip("openai").OpenAI(base_url=f"{url}/v1", api_key="none")
    fields: dict[str, Any] = {"model": "smol", "temperature": 0, "input": QUESTION, "max_output_tokens": COUNT + 8}
    whole = client.responses.create(**fields)
    assert whole.output_text.startswith(expected.chat)
    assert whole.usage.output_tokens <= COUNT + 8
    events = list(client.responses.create(**fields, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.output_text == whole.output_text


def test_openai_embeddings(url: str, path: Path) -> None:
    client = pytest.importorskip("openai").OpenAI(base_url=f"{url}/v1", api_key="none")
    found = client.embeddings.create(model="smol", input=[QUESTION, "The sea."])  # asks for base64
    plain = client.embeddings.create(model="smol", input=QUESTION, encoding_format="float")
    vectors = np.array([each.embedding for each in found.data])
    assert np.abs(vectors[0] - plain.data[0].embedding).max() < 1e-6
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_openai_for_javascript(url: str, expected: Expected) -> None:
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", 'require("openai")'], capture_output=True, check=False).returncode:
        pytest.skip("needs Node.js and, in a folder of NODE_PATH, npm's openai")
    script = Path(__file__).with_name("clients.mjs")
    done = subprocess.run([node, str(script), url, QUESTION, BEGUN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["chat"] == found["streamed"] == found["response"] == found["events"] == expected.chat
    assert found["completion"] == expected.continuation
    assert found["logprob"] == pytest.approx(expected.logprob, abs=1e-4)
    assert (found["top"], found["generated"], found["models"], found["status"]) == (2, COUNT, ["smol"], 400)
    assert len(found["embedding"]) == 4


def test_anthropic(url: str, expected: Expected) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=url, api_key="none")
    # Version 2 of the SDK has no parameter for the temperature any more.
    fields: dict[str, Any] = {"model": "smol", "messages": MESSAGES, "max_tokens": COUNT}
    fields["extra_body"] = {"temperature": 0}
    message = client.messages.create(**fields)
    assert message.content[0].text == expected.chat
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", COUNT)
    with client.messages.stream(**fields) as stream:
        assert "".join(stream.text_stream) == expected.chat
        assert stream.get_final_message().usage.output_tokens == COUNT
    count = client.messages.count_tokens(model="smol", messages=MESSAGES)
    # Our count of the prompt has the tokens that were in the cache, which Anthropic's usage counts apart.
    assert count.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**{**fields, "messages": []})


def test_ollama(url: str, expected: Expected) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=url)
    options = {"temperature": 0, "num_predict": COUNT}
    assert client.chat(model="smol", messages=MESSAGES, options=options).message.content == expected.chat
    parts = list(client.chat(model="smol", messages=MESSAGES, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == expected.chat
    assert parts[-1].eval_count == COUNT
    raw = client.generate(model="smol", prompt=BEGUN, raw=True, options=options)
    assert raw.response == expected.continuation
    assert [model.model.split(":")[0] for model in client.list().models] == ["smol"]
    assert client.show("smol").details.format == "gguf"
    assert [each.model.split(":")[0] for each in client.ps().models] == ["smol"]
    assert len(client.embed(model="smol", input=QUESTION).embeddings[0]) == 576
    with pytest.raises(ollama.ResponseError):
        client.chat(model="smol", messages=[], options={"temperature": -1})


def test_langchain(url: str, expected: Expected) -> None:
    langchain = pytest.importorskip("langchain_openai")
    common: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "model": "smol"}
    model = langchain.ChatOpenAI(**common, temperature=0, max_tokens=COUNT, stream_usage=True)
    answer = model.invoke(QUESTION)
    assert answer.content == expected.chat
    assert answer.usage_metadata["output_tokens"] == COUNT
    chunks = list(model.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == expected.chat
    assert [each.content for each in model.batch([QUESTION, QUESTION])] == [expected.chat] * 2
    text = langchain.OpenAI(**common, temperature=0, max_tokens=COUNT).invoke(BEGUN)
    assert text == expected.continuation
    # It sends token ids, counted with its own tokenizer, unless it is told not to.
    vectors = langchain.OpenAIEmbeddings(**common, check_embedding_ctx_length=False).embed_documents([QUESTION])
    assert len(vectors[0]) == 576


def test_llama_index(url: str, expected: Expected) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like")
    types = pytest.importorskip("llama_index.core.llms")
    common: dict[str, Any] = {"model": "smol", "api_base": f"{url}/v1", "api_key": "none"}
    model = like.OpenAILike(**common, is_chat_model=True, temperature=0, max_tokens=COUNT)
    message = types.ChatMessage(role="user", content=QUESTION)
    assert model.chat([message]).message.content == expected.chat
    assert "".join(part.delta for part in model.stream_chat([message])) == expected.chat
    plain = like.OpenAILike(**common, is_chat_model=False, temperature=0, max_tokens=COUNT)
    assert plain.complete(BEGUN).text == expected.continuation
    embedding = pytest.importorskip("llama_index.embeddings.openai_like")
    vector = embedding.OpenAILikeEmbedding(model_name="smol", api_base=f"{url}/v1", api_key="none").get_text_embedding(
        QUESTION
    )
    assert len(vector) == 576


def test_requests(url: str, expected: Expected) -> None:
    requests = pytest.importorskip("requests")
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": COUNT}
    answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.json()["choices"][0]["message"]["content"] == expected.chat
    native = requests.post(
        f"{url}/completion", json={"prompt": BEGUN, "n_predict": COUNT, "temperature": 0}, timeout=60
    )
    assert native.json()["content"] == expected.continuation
    with requests.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, stream=True, timeout=60) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith(b"data: {")]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
    assert "".join(delta.get("content", "") for delta in deltas) == expected.chat


def test_curl(url: str, expected: Expected) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("needs curl")
    body = json.dumps({"messages": MESSAGES, "temperature": 0, "max_tokens": COUNT})
    command = [curl, "-sS", "-N", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d"]
    found = json.loads(subprocess.check_output([*command, body]))
    assert found["choices"][0]["message"]["content"] == expected.chat
    # Without a header curl says that the body is a form.
    found = json.loads(subprocess.check_output([curl, "-sS", f"{url}/v1/chat/completions", "-d", body]))
    assert found["choices"][0]["message"]["content"] == expected.chat


def test_lm_evaluation_harness_has_the_scores_of_the_engine(
    url: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its local-completions against our model class for it: log-likelihoods, greedy flags and generated texts."""
    pytest.importorskip("lm_eval")
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from lltool.eval.scoring.lm_eval import LltoolLM

    transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    theirs = LocalCompletionsAPI(
        model="smol", base_url=f"{url}/v1/completions", tokenizer_backend="huggingface", tokenizer=str(tmp_path),
        max_length=1024, num_concurrent=1,
    )  # fmt: skip
    ours = LltoolLM(str(path), max_length=1024)
    pairs = [
        ("The capital of Japan is", " Tokyo"),
        ("The capital of Japan is", " a small village in the Alps"),
        ("Two and two are", " four"),
        ("Question: Is the sea blue?\nAnswer:", " yes"),
        ("Question: Is the sea blue?\nAnswer:", " no"),
    ]
    asked = [SimpleNamespace(args=pair) for pair in pairs]
    found, wanted = theirs.loglikelihood(asked, disable_tqdm=True), ours.loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    # Batches differ, and with them the last bits of 8-bit sums.
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], rel=0.02)
