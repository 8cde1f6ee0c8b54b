"""Matchers: triggers, forced tokens, taking back; and requests that follow them."""

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.calls.reasoning import after_reasoning
from lltool.engine.generate import generate, generate_all, generate_step
from lltool.engine.grammar.constraint import Constraint, Trigger
from lltool.engine.grammar.matcher import Matcher
from lltool.engine.model import Model, load_model
from lltool.engine.request import Limits, Request, Token
from lltool.engine.sampling import Sampler
from lltool.engine.scheduler import Scheduler
from lltool.gguf.errors import InputError
from tests.engine import tiny_gguf

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ab", "cd"]}, "n": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
ANSWERS = {f'{{"name":"{name}","n":{n}}}' for name in ("ab", "cd") for n in range(10, 100)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model whose tokens are the letters from ! to ~, `<s>` and `</s>`."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_gguf.write_model(path, {**tiny_gguf.metadata(), **tiny_gguf.vocabulary()}, tiny_gguf.tensors())
    with load_model(path, threads=1, context=256, sequences=8, deterministic=True) as model:
        yield model


def ids_of(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special=False)


def allowed(matcher: Matcher) -> set[int] | None:
    mask = matcher.allowed()
    return None if mask is None else set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def test_a_mask_has_the_tokens_that_are_allowed_alone(model: Model) -> None:
    matcher = model.grammars.matcher(Constraint.regex("[a-c][0-9]+"))
    for text in ("b", "7"):
        found = allowed(matcher)
        assert found == {id for id in range(96) if matcher.allows(id)}
        (id,) = ids_of(model, text)
        assert found is not None
        assert id in found
        matcher.accept(id)
    assert allowed(matcher) == {*ids_of(model, "0123456789"), *model.tokenizer.end_of_generation}


def test_tokens_can_be_taken_back(model: Model) -> None:
    matcher = model.grammars.matcher(Constraint.regex("(ab)+"))
    masks = []
    for id in ids_of(model, "ababab"):
        masks.append(allowed(matcher))
        matcher.accept(id)
    for count in (1, 2, 3):
        matcher.rollback(count)
        del masks[len(masks) - count + 1 :]
        assert allowed(matcher) == masks.pop()
        masks.append(allowed(matcher))
        masks = masks[: len(masks)]
        for id in ids_of(model, "ababab")[len(masks) - 1 : len(masks) - 1 + count]:
            matcher.accept(id)
            masks.append(allowed(matcher))
        masks.pop()
    with pytest.raises(ValueError, match="7 tokens to take back, wanted at most 6"):
        matcher.rollback(7)


def test_a_fork_goes_its_own_way(model: Model) -> None:
    first = model.grammars.matcher(Constraint.choices(["abc", "axy"]))
    (a, b, x) = ids_of(model, "abx")
    first.accept(a)
    second = first.fork()
    first.accept(b)
    second.accept(x)
    assert (allowed(first), allowed(second)) == ({*ids_of(model, "c")}, {*ids_of(model, "y")})


def test_a_token_that_is_not_allowed_is_named(model: Model) -> None:
    matcher = model.grammars.matcher(Constraint.regex("[0-9]"))
    with pytest.raises(InputError, match="the grammar does not allow token 64 \\('a'\\)"):
        matcher.accept(*ids_of(model, "a"))


@pytest.mark.parametrize(
    ("trigger", "free", "constrained"),
    [
        (Trigger("word", "go"), "7a", "go7!"),
        (Trigger("word", "go", is_included=False), "a7go", "7!"),
        (Trigger("pattern", "x(go)"), "7x", "go7!"),
        (Trigger("pattern", "x(g)o", is_included=False), "xg", "o7!"),
        (Trigger("pattern", "[1-3]"), "a9", "27!"),
        (Trigger("pattern_full", "[a-z]*go"), "", "abgo7!"),
        (Trigger("token", 9), "a7", "*7!"),
    ],
)
def test_a_lazy_constraint_begins_at_its_trigger(model: Model, trigger: Trigger, free: str, constrained: str) -> None:
    """The constraint is exactly the rest: it is complete after it, and was free before the trigger was whole."""
    constraint = Constraint.choices([constrained]).after(trigger)
    matcher = model.grammars.matcher(constraint)
    waited = 0
    for id in ids_of(model, free + constrained):
        if matcher.is_waiting:
            assert allowed(matcher) is None
            assert matcher.forced() == []
            waited += 1
        else:
            assert allowed(matcher) == {id}
        matcher.accept(id)
    assert waited == len(free) + {"go7!": 2, "7!": 0, "o7!": 1, "27!": 1, "abgo7!": 4, "*7!": 1}[constrained]
    assert matcher.is_complete
    matcher.rollback(len(free + constrained))
    assert matcher.is_waiting
    matcher.accept(*ids_of(model, "z"))
    assert matcher.is_waiting


def test_a_token_can_be_the_trigger(model: Model) -> None:
    (star, *_) = ids_of(model, "*")
    for is_included, first in ((True, "*"), (False, "7")):
        trigger = Trigger("token", star, is_included=is_included)
        matcher = model.grammars.matcher(Constraint.regex(f"[{first}]7?").after(trigger))
        matcher.accept(star)
        assert not matcher.is_waiting
        assert (allowed(matcher) or set()) >= {*ids_of(model, "7")}


def test_triggers_are_checked() -> None:
    for kind, value in (("word", ""), ("word", 3), ("token", "x"), ("pattern", "(")):
        with pytest.raises(InputError, match=f"trigger {kind}"):
            Trigger(kind, value)  # type: ignore[arg-type]


def text_of(model: Model, constraint: Constraint, **sampling: object) -> tuple[str, list[int], str, str]:
    matcher = model.grammars.matcher(constraint)
    generation = generate(model, ids_of(model, "abc"), sampler=Sampler(**sampling), max_tokens=60, matcher=matcher)  # type: ignore[arg-type]
    tokens = list(generation)
    return "".join(token.text for token in tokens), [t.id for t in tokens], generation.reason, generation.detail


def test_all_texts_follow_the_constraint(model: Model) -> None:
    found = set()
    for seed in range(40):
        text, _, reason, detail = text_of(model, Constraint.json_schema(SCHEMA), seed=seed, temperature=1.5)
        assert (reason, detail) == ("stop", "what the grammar describes is complete")
        found.add(text)
    assert found <= ANSWERS
    assert len(found) > 15


def test_sampling_is_that_of_the_allowed_tokens(model: Model) -> None:
    """A regular expression that allows single digits: the choice is the sampler's under the mask, with its seed."""
    matcher = model.grammars.matcher(Constraint.regex("[0-9]"))
    mask = matcher.allowed()
    logits = model.evaluate(model.new_sequence(), ids_of(model, "abc"))
    for seed in range(20):
        expected = Sampler(seed=seed, temperature=2.0).sample(logits, mask)
        assert text_of(model, Constraint.regex("[0-9]"), seed=seed, temperature=2.0)[1] == [expected]


class Counting(Request):
    """A request that counts the rows of logits that it is given, and refuses those within its text."""

    rows = 0

    def take_choice(self, choice: int | None, logits: NDArray[np.float32]) -> Token:
        self.rows += 1
        return super().take_choice(choice, logits)

    def read_prompt(self, start: int, logits: NDArray[np.float32]) -> None:
        raise AssertionError("logits within the text, which nobody asked for")


class Watched(Counting):
    """A request that wants logits before every token."""

    wants_rows = True


def test_forced_tokens_take_no_steps_and_change_nothing(model: Model) -> None:
    found = []
    for kind in (Counting, Watched):
        request = kind(
            ids_of(model, "abc"),
            tokenizer=model.tokenizer,
            context=256,
            sampler=Sampler(seed=5, temperature=1.5),
            limits=Limits(60),
            matcher=model.grammars.matcher(Constraint.json_schema(SCHEMA)),
        )
        scheduler, steps, ids = Scheduler(model), 0, []
        scheduler.submit(request)
        while not request.is_over:
            ids += [token.id for _, token in generate_step(scheduler)]
            steps += 1
        scheduler.free()
        found.append((ids, steps))
        assert request.rows == steps
        if isinstance(request, Watched):
            assert len(ids) == steps
    (ids, steps), (watched, more) = found
    assert ids == watched
    assert steps <= 12 < more  # most of {"name":" and ","n": was not waited for


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 3},
        {"repeat_penalty": 1.5},
        {"typical_p": 0.5},
        {"samplers": ["top_k", "penalties", "temperature"], "repeat_penalty": 1.5},
    ],
)
def test_the_likeliest_token_is_the_same_with_and_without_the_mask(
    model: Model, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    constraints = [Constraint.regex("[a-m]{3}[0-9]+x"), Constraint.json_object(), Constraint.grammar("root ::= [^z]+")]
    masks = []
    found = []
    original = Matcher.allowed
    monkeypatch.setattr(Matcher, "allowed", lambda self: masks.append(self) or original(self))
    for is_shortcut in (True, False):
        if not is_shortcut:
            monkeypatch.setattr(Sampler, "takes_likeliest", False)
        found.append([text_of(model, each, temperature=0, **settings) for each in constraints])
        masks.append(None)
    assert found[0] == found[1]
    first = masks.index(None)
    assert (first < len(masks) - first - 2) == (not {"typical_p", "samplers"} & settings.keys())


def test_texts_with_different_constraints_share_batches(model: Model) -> None:
    constraints = [
        Constraint.json_schema(SCHEMA),
        Constraint.regex("[a-f]{5}"),
        None,
        Constraint.grammar('root ::= "x" root | "y"'),
        Constraint.choices(["yes", "no"]),
    ]

    def matcher(constraint: Constraint | None) -> Matcher | None:
        return constraint and model.grammars.matcher(constraint)

    prompt = ids_of(model, "abc")
    samplers = [Sampler(seed=number, temperature=1.5) for number in range(len(constraints))]
    together = generate_all(
        model, [prompt] * 5, samplers=samplers, matchers=[matcher(each) for each in constraints], max_tokens=60
    )
    alone = []
    for number, constraint in enumerate(constraints):
        tokens = generate(
            model, prompt, sampler=Sampler(seed=number, temperature=1.5), matcher=matcher(constraint), max_tokens=60
        )
        alone.append("".join(token.text for token in tokens))
    assert together == alone
    assert json.loads(together[0])["n"] >= 10
    assert re.fullmatch("[a-f]{5}", together[1])
    assert re.fullmatch("x*y|x{60}", together[3])
    assert together[4] in ("yes", "no")


def test_stop_strings_and_limits_cut_a_text(model: Model) -> None:
    matcher = model.grammars.matcher(Constraint.json_schema(SCHEMA))
    generation = generate(
        model, ids_of(model, "abc"), sampler=Sampler(seed=1), stop=['"n"'], matcher=matcher, max_tokens=60
    )
    assert "".join(token.text for token in generation) in ('{"name":"ab",', '{"name":"cd",')
    assert (generation.reason, generation.detail) == ("stop", "the stop string '\"n\"'")
    matcher = model.grammars.matcher(Constraint.json_schema(SCHEMA))
    generation = generate(model, ids_of(model, "abc"), sampler=Sampler(seed=1), matcher=matcher, max_tokens=4)
    assert "".join(token.text for token in generation) == '{"na'
    assert (generation.reason, generation.detail) == ("length", "4 tokens were asked for")


def test_the_text_may_end_where_it_is_complete_though_it_could_go_on(model: Model) -> None:
    ends = dict.fromkeys(model.tokenizer.end_of_generation, 50.0)
    text, ids, reason, detail = text_of(model, Constraint.regex("ab[0-9]*"), seed=0, logit_bias=ends)
    assert (text, reason, detail) == ("ab", "stop", "the model ended the text with </s>")
    assert ids[-1] in ends


def test_a_constraint_that_exceeds_its_limits_ends_its_own_text_only(model: Model) -> None:
    doubling = 'root ::= a0 "!"\n' + "".join(f"a{i} ::= a{i + 1} a{i + 1}\n" for i in range(200)) + 'a200 ::= "x" | ""'
    requests = []
    scheduler = Scheduler(model)
    for constraint in (Constraint.grammar(doubling), Constraint.regex("[0-9]{8}")):
        request = Request(
            ids_of(model, "abc"),
            tokenizer=model.tokenizer,
            context=256,
            sampler=Sampler(seed=1, logit_bias=dict.fromkeys(ids_of(model, "x"), 50.0)),
            limits=Limits(60),
            matcher=model.grammars.matcher(constraint),
        )
        requests.append(request)
        scheduler.submit(request)
    while not scheduler.is_idle:
        generate_step(scheduler)
    scheduler.free()
    assert requests[0].reason == "error"
    assert "grammar" in requests[0].detail
    assert requests[1].reason == "stop"


@pytest.mark.parametrize(
    ("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")]
)
def test_a_constraint_begins_after_the_reasoning(model: Model, opening: str, closing: str) -> None:
    constraint = Constraint.regex("[0-9]")
    assert after_reasoning(constraint, ids_of(model, "abc"), model.tokenizer) == constraint
    lazy = after_reasoning(constraint, ids_of(model, f"abc{opening}"), model.tokenizer)
    assert lazy.triggers == (Trigger("word", closing, is_included=False),)
    matcher = model.grammars.matcher(lazy)
    for id in ids_of(model, f"why{closing}"):
        assert allowed(matcher) is None
        matcher.accept(id)
    assert allowed(matcher) == {*ids_of(model, "0123456789")}


TAG = {
    "structures": [
        {"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "null"}, "end": "</f>"},
    ],
    "triggers": ["<f"],
}


def test_structural_tags_constrain_what_follows_a_trigger(model: Model) -> None:
    matcher = model.grammars.matcher(Constraint.structural_tag(TAG))
    for text in ("Hello<", "f"):
        for id in ids_of(model, text):
            assert len(allowed(matcher) or ()) > 90
            matcher.accept(id)
    assert allowed(matcher) == {*ids_of(model, "=")}
    for id in ids_of(model, "=b>null</f>"):
        matcher.accept(id)
    assert matcher.may_end
    assert len(allowed(matcher) or ()) > 90


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ({}, "wanted `structures`"),
        ({**TAG, "triggers": ["<g"]}, "'<f=a>' begins with none of the triggers"),
        ({**TAG, "structures": [{}]}, "structures\\[0\\] has no text `begin`"),
        ("x", "is not JSON"),
        ("[]", "found list, wanted an object"),
    ],
)
def test_malformed_structural_tags_are_refused(tag: object, message: str) -> None:
    with pytest.raises(InputError, match=f"structural tag: .*{message}"):
        Constraint.structural_tag(tag)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.regex("(a"), "regular expression: .*unclosed group"),
        (Constraint.regex("a(?=b)"), "regular expression: .*look-around"),
        (Constraint.lark("start: foo"), 'Lark grammar: .*unknown name: "foo"'),
        (Constraint.grammar("%llguidance {}\nstart: foo"), "Lark grammar"),
        (Constraint.regex("a" * 70_000), "regular expression: has 70000 bytes, wanted at most 65536"),
        (Constraint.regex("é"), "regular expression: no text satisfies it"),  # the vocabulary cannot write it
    ],
)
def test_what_cannot_be_honoured_is_named(model: Model, constraint: Constraint, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.grammars.matcher(constraint)


@pytest.mark.parametrize("choices", ["ab", [], [1], None])
def test_choices_are_texts(choices: object) -> None:
    with pytest.raises(InputError, match=r"choices: .*wanted a list of texts"):
        Constraint.choices(choices)  # type: ignore[arg-type]
