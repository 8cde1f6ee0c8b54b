"""A conversation: what each turn computes, what the model sees, and what stays after an interrupt or an error."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lltool.engine import generate
from lltool.engine.conversation import Conversation
from lltool.engine.conversation_file import load_conversation, save_conversation
from lltool.engine.generate import Generation
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.engine.text.chat import ChatTemplate, read_chat_template
from lltool.gguf.errors import InputError
from tests.eval.tiny_text_model import write_text_model

CONTEXT = 256
GREEDY = Sampler(temperature=0)
# Leaves out what earlier answers have before a bar, as the templates of reasoning models do.
THINKING = (
    "{% for m in messages %}{{ m.role }}:"
    "{{ m.content if loop.last else m.content.split('|')[-1] }}\n{% endfor %}{{ 'assistant:' }}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_text_model(tmp_path_factory.mktemp("model") / "tiny.gguf", seed=2)
    with load_model(path, context=CONTEXT, threads=1, precision="f32", deterministic=True) as model:
        yield model


@pytest.fixture
def template(model: Model) -> ChatTemplate:
    return read_chat_template(model.file, model.tokenizer)


@pytest.fixture
def conversation(model: Model, template: ChatTemplate) -> Iterator[Conversation]:
    conversation = Conversation(model, template, sampler=GREEDY, max_tokens=8)
    yield conversation
    conversation.clear()


def seeded(seed: int) -> Sampler:
    return Sampler(temperature=1, top_k=0, top_p=1, min_p=0, seed=seed)


def say(conversation: Conversation, text: str) -> Generation:
    answer = conversation.ask(text)
    assert "".join(token.text for token in answer) == answer.text
    assert conversation.messages[-1] == {"role": "assistant", "content": answer.text}
    return answer.generation


def test_a_turn_computes_only_the_new_tokens(conversation: Conversation, template: ChatTemplate) -> None:
    conversation.sampler = seeded(3)
    first = say(conversation, "Hi there")
    assert (first.timings.cached, first.timings.prompt_tokens) == (0, len("user:Hi there\n"))
    before = "user:Hi there\nassistant:" + conversation.messages[1]["content"] + "\n"
    conversation.sampler = seeded(4)
    second = say(conversation, "And?")
    # The template writes what the model did not: all between the first prompt's end and the answer is new.
    new = len("assistant:") + len(conversation.messages[1]["content"]) + len("\nuser:And?\n")
    assert (second.timings.cached, second.timings.prompt_tokens) == (len("user:Hi there\n"), new)
    ids = conversation.model.tokenizer.encode(before + "user:And?\n", add_special=False)
    alone = generate.generate(conversation.model, ids, sampler=seeded(4), max_tokens=8)
    assert "".join(token.text for token in alone) == conversation.messages[3]["content"] != ""


def test_an_answer_that_the_template_repeats_is_not_computed_again(model: Model) -> None:
    prompts = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{{ 'a:' }}"
    conversation = Conversation(
        model, ChatTemplate.compile(prompts, model.tokenizer), sampler=seeded(1), max_tokens=8, stop=["\n"]
    )
    say(conversation, "Hi there")
    second = say(conversation, "And?")
    # The last token of an answer was not evaluated, as nothing came after it.
    assert second.timings.cached == len("u:Hi there\na:") + 7
    assert second.timings.prompt_tokens == 1 + len("\nu:And?\na:")
    conversation.clear()


def test_a_template_that_drops_reasoning_keeps_the_common_prefix(model: Model) -> None:
    conversation = Conversation(model, ChatTemplate.compile(THINKING, model.tokenizer), sampler=GREEDY, max_tokens=8)
    conversation.replace([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "hm, well|Hello"}])
    assert say(conversation, "one").timings.cached == 0
    assert conversation.cached == len("user:Hi\nassistant:Hello\nuser:one\nassistant:") + 7
    # Now the model's own answer, of which the template keeps only the end.
    thought = conversation.messages[3]["content"]
    conversation.messages[3] = {"role": "assistant", "content": f"{thought[:4]}|{thought[4:]}"}
    common = len("user:Hi\nassistant:Hello\nuser:one\nassistant:") + len(common_prefix(thought, thought[4:]))
    second = say(conversation, "two")
    assert second.timings.cached == common
    after = thought[4:] + "\nuser:two\nassistant:"
    assert common + second.timings.prompt_tokens == len("user:Hi\nassistant:Hello\nuser:one\nassistant:" + after)
    conversation.clear()


def common_prefix(first: str, second: str) -> str:
    return first[: next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))]


def test_regenerate_answers_the_last_message_again(conversation: Conversation) -> None:
    say(conversation, "one")
    say(conversation, "two")
    before = list(conversation.messages)
    again = conversation.regenerate()
    assert conversation.messages == before  # until it is over
    assert "".join(token.text for token in again) == before[-1]["content"]
    assert again.generation.timings.prompt_tokens == 1  # whose logits are wanted
    assert conversation.messages == before
    conversation.sampler = seeded(1)
    list(conversation.regenerate())
    assert conversation.messages[:3] == before[:3]
    assert conversation.messages[3] != before[3]


def test_regenerate_wants_a_message(conversation: Conversation) -> None:
    with pytest.raises(InputError, match="there is no message to answer again"):
        conversation.regenerate()
    conversation.replace([{"role": "user", "content": "unanswered"}])
    assert list(conversation.regenerate())
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_clear_returns_all_pages(conversation: Conversation) -> None:
    free = conversation.model.free_pages
    say(conversation, "x" * 100)
    assert conversation.model.free_pages == free - 2
    assert conversation.cached > 100
    conversation.clear()
    assert (conversation.model.free_pages, conversation.cached, conversation.messages) == (free, 0, [])
    assert say(conversation, "x" * 100).timings.cached == 0


def test_what_there_is_of_an_interrupted_answer_stays(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = generate.Dialogue.step, iter(range(100))

    def interrupt_once(self: generate.Dialogue) -> object:
        if next(calls) == 3:  # after the prompt and two tokens
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(generate.Dialogue, "step", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("one"))
    assert len(conversation.messages[1]["content"]) == 3
    assert say(conversation, "two").timings.cached > 0
    assert len(conversation.messages) == 4


def test_an_interrupt_before_the_answer_changes_nothing(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(conversation, "one")
    before = list(conversation.messages)

    def interrupt(self: generate.Dialogue) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate.Dialogue, "step", interrupt)
        for begin in (lambda: conversation.ask("two"), conversation.regenerate):
            with pytest.raises(KeyboardInterrupt):
                list(begin())
            assert conversation.messages == before
    say(conversation, "two")


def test_an_answer_that_nobody_reads_to_its_end_is_closed_by_the_next(conversation: Conversation) -> None:
    answer = conversation.ask("one")
    text = next(answer).text + next(answer).text
    say(conversation, "two")
    assert conversation.messages[:2] == [{"role": "user", "content": "one"}, {"role": "assistant", "content": text}]
    assert list(answer) == []
    assert len(conversation.messages) == 4


def test_the_system_message_comes_first(conversation: Conversation, template: ChatTemplate) -> None:
    conversation.system = "Be brief"
    say(conversation, "Hi")
    assert conversation.cached == len("system:Be brief\nuser:Hi\n") + 7
    conversation.system = ""
    assert say(conversation, "Ho").timings.cached == 0


def test_the_oldest_messages_are_forgotten_when_the_context_is_full(conversation: Conversation) -> None:
    conversation.system = "s"
    for number in range(4):
        answer = conversation.ask(f"{number}" + "x" * 30)
        list(answer)
        assert answer.newly_forgotten == 0
    # Each turn takes 36 + 1 + 18 + 1 tokens; with the fifth, fewer than 8 of 256 would be left.
    assert conversation.cached <= CONTEXT
    answer = conversation.ask("y" * 30)
    list(answer)
    assert answer.newly_forgotten == conversation.forgotten
    assert conversation.forgotten % 2 == 0 < conversation.forgotten < 8
    assert conversation.cached <= CONTEXT // 2 + 8
    assert len(conversation.messages) == 10
    seen = "".join(f"{m['role']}:{m['content']}\n" for m in conversation.messages[conversation.forgotten : -1])
    assert conversation.cached == len("system:s\n" + seen) + 7
    # One message less would not have left half of the context.
    more = "".join(f"{m['role']}:{m['content']}\n" for m in conversation.messages[conversation.forgotten - 2 : -1])
    assert len("system:s\n" + more) > CONTEXT // 2
    assert answer.generation.timings.cached == len("system:s\nuser:")
    assert say(conversation, "z").timings.cached > len(seen)


def test_a_message_that_no_context_could_hold_is_refused(conversation: Conversation) -> None:
    say(conversation, "one")
    before = list(conversation.messages)
    with pytest.raises(InputError, match=r"the message has 306 tokens and the context 256; shorten the message or"):
        conversation.ask("x" * 300)
    assert (conversation.messages, conversation.forgotten) == (before, 0)
    conversation.system = "x" * 300
    with pytest.raises(InputError, match=r"the message and the system message have 315 tokens and the context 256"):
        conversation.ask("x")


def test_an_answer_ends_where_the_context_does(conversation: Conversation) -> None:
    conversation.max_tokens = None
    answer = conversation.ask("x" * 200)
    list(answer)
    assert answer.is_cut_off
    assert answer.generation.detail == "the context of 256 tokens is full"
    conversation.max_tokens = 8
    answer = conversation.ask("y")
    list(answer)
    assert not answer.is_cut_off
    assert conversation.forgotten == 2


def test_a_saved_conversation_goes_on_in_another(
    conversation: Conversation, model: Model, template: ChatTemplate, tmp_path: Path
) -> None:
    conversation.system, conversation.sampler, conversation.stop = "Be brief", seeded(5), ["@@"]
    changes = {"logit_bias": {3: -2.5}, "samplers": ("top_k", "temperature"), "dry_sequence_breakers": ("x",)}
    conversation.sampler = replace(conversation.sampler, **changes)
    say(conversation, "Grüße 世界")
    path = tmp_path / "saved.json"
    save_conversation(conversation, path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["model"] == "tiny.gguf"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["messages"][1]["content"] == "Grüße 世界"
    assert "Grüße 世界" in path.read_text(encoding="utf-8")
    other = Conversation(model, template, sampler=GREEDY, system="other")
    load_conversation(other, path)
    for name in ("messages", "system", "max_tokens", "stop"):
        assert getattr(other, name) == getattr(conversation, name), name
    assert other.sampler == conversation.sampler
    assert (other.sampler.top_k, other.sampler.seed, other.sampler.logit_bias) == (0, 5, {3: -2.5})


def test_a_list_of_messages_and_a_request_are_conversations(conversation: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    messages = [{"role": "user", "content": "Hi"}]
    for saved in (messages, {"messages": messages, "temperature": None, "stop": "x", "max_tokens": 3}):
        path.write_text(json.dumps(saved))
        load_conversation(conversation, path)
        assert (conversation.messages, conversation.sampler.temperature) == (messages, 0)
    assert (conversation.stop, conversation.max_tokens) == (["x"], 3)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (b"{", "cannot be read as JSON: Expecting property name"),
        (b"[" * 100_000, "cannot be read as JSON: maximum recursion depth"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"3", 'found no list of "messages"'),
        (b'{"messages": "x"}', 'found no list of "messages"'),
        (b'{"messages": [], "tools": []}', "the setting 'tools' is not supported; remove it"),
        (b'[{"role": "user"}]', "message 1: found 'role', wanted an object with"),
        (b'["x"]', "message 1: found a JSON str, wanted an object"),
        (b'[{"role": "user", "content": "x"}, {"role": "critic", "content": "x"}]', "message 2: the role is 'critic'"),
        (b'[{"role": "user", "content": ["x"]}]', "message 1: the content is a JSON list, wanted a text"),
        (b'{"messages": [], "temperature": "hot"}', "temperature 'hot', wanted a number"),
        (b'{"messages": [], "temperature": -1}', "temperature -1, wanted a number from 0"),
        (b'{"messages": [], "top_p": NaN}', "top_p nan, wanted a number from 0 to 1"),
        (b'{"messages": [], "max_tokens": 1.5}', "max_tokens 1.5, wanted a whole number"),
        (b'{"messages": [], "seed": -1}', "seed -1, wanted at least 0"),
        (b'{"messages": [], "stop": [1]}', "stop [1], wanted a text or a list of texts"),
    ],
)
def test_a_bad_file_changes_nothing(conversation: Conversation, tmp_path: Path, saved: bytes, message: str) -> None:
    say(conversation, "Hi")
    names = ("messages", "system", "sampler", "max_tokens", "stop")
    before: list[Any] = [getattr(conversation, name) for name in names]
    path = tmp_path / "bad.json"
    path.write_bytes(saved)
    with pytest.raises(InputError) as error:
        load_conversation(conversation, path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert [getattr(conversation, name) for name in names] == before
