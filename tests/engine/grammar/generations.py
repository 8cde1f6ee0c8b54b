"""Generates texts at a high temperature under 50 constraints, and counts those that are not valid.

    python -m tests.engine.grammar.generations MODEL COUNT

Validity is for others to say: the package jsonschema, Python's regular expressions, and functions below.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from jsonschema import Draft202012Validator

from lltool.engine.generate import generate_step
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.model import Model, load_model
from lltool.engine.request import Limits, Request
from lltool.engine.sampling import Sampler
from lltool.engine.scheduler import Scheduler
from tests.engine.grammar.grammars import GRAMMARS
from tests.engine.grammar.schemas import schemas

REGEXES = [
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}", r"(yes|no|maybe)", r"[A-Z][a-z]{2,12}( [A-Z][a-z]{2,12})?", r"\+?[0-9]{3}-[0-9]{7}",
    r"#[0-9a-f]{6}", r"[a-z]+@[a-z]+\.(com|org|net)", r"(([0-9]|[1-9][0-9])\.){3}[0-9]{1,2}", r"[^\n]{1,40}\n",
    r"[а-я]{2,8}!", r"(a|b|ab){3,9}c", r"\$[1-9][0-9]{0,4}\.[0-9]{2}", r"v[0-9]+(\.[0-9]+){1,2}(-rc[0-9])?",
    r"(\(\)|\[\])*;", r"[\x20-\x7e]{10}",
]  # fmt: skip
BY_GRAMMAR: dict[str, str | Callable[[str], bool]] = {
    "choice": "yes|no|maybe",
    "prefixes": "a|ab|abc|abcd",
    "exactly": "[0-9]{4}",
    "at least": "x{3,}y",
    "between": r"(ab|c){2,5}\.",
    "repeated repetition": "a{0,3}b*c{4}",
    "ambiguous lists": "((a|aa)+,)+end",
    "greedy trap": "[a-z]*end",
    "greedy digits": "[0-9]{4,}",
    "right recursion": lambda text: re.fullmatch(r"\(*x\)*", text) is not None and text.count("(") == text.count(")"),
    "palindromes": lambda text: re.fullmatch("[ab]*", text) is not None and text == text[::-1],
    "escapes": r'"quoted" \\ \t\r\n[\]\[\-\\"]+',
    "negated": r'"[^"\\\x00-\x1f]*"',
    "Unicode literal": "(Grüße|你好|🙂🙃|привет)+",
    "lines": r"(- [^\n]+\n)+",
    "json numbers": r"-?(0|[1-9][0-9]{0,15})(\.[0-9]+)?([eE][-+]?[0-9]+)?",
}


def cases() -> Iterator[tuple[Constraint, Callable[[str], bool]]]:
    for pattern in REGEXES:
        yield Constraint.regex(pattern), lambda text, pattern=pattern: re.fullmatch(pattern, text) is not None
    for name, check in BY_GRAMMAR.items():
        is_valid = check if callable(check) else lambda text, check=check: re.fullmatch(check, text) is not None
        yield Constraint.grammar(GRAMMARS[name]), is_valid
    chosen = [schema for schema, _ in schemas() if "properties" in schema or "items" in schema]
    for schema in chosen[:: len(chosen) // 20][:20]:
        validator = Draft202012Validator(schema)
        yield Constraint.json_schema(schema), lambda text, v=validator: v.is_valid(json.loads(text))


def generations(
    model: Model, count: int, *, tokens: int = 120, temperature: float = 1.5
) -> tuple[Counter[str], list[str]]:
    """Generates `count` texts, the constraints in turns; returns how they ended, and those that are not valid."""
    prompt = model.tokenizer.encode("Give me an example of what was asked for, please.\n")
    every, ends, invalid = list(cases()), Counter[str](), []
    scheduler = Scheduler(model)
    running: dict[Request, tuple[list[str], Constraint, Callable[[str], bool]]] = {}
    for number in range(count):
        constraint, is_valid = every[number % len(every)]
        request = Request(
            prompt,
            tokenizer=model.tokenizer,
            context=model.context,
            sampler=Sampler(temperature=temperature, seed=number, top_k=0, top_p=1.0, min_p=0.0),
            limits=Limits(tokens),
            matcher=model.grammars.matcher(constraint),
        )
        running[request] = [], constraint, is_valid
        scheduler.submit(request)
    while not scheduler.is_idle:
        for request, token in generate_step(scheduler):
            running[request][0].append(token.text)
        for request in [request for request in running if request.is_over]:
            pieces, constraint, is_valid = running.pop(request)
            ends[request.reason] += 1
            text = "".join(pieces)
            if request.reason not in ("stop", "length") or (request.reason == "stop" and not is_valid(text)):
                invalid.append(f"{constraint.text}: {text!r}, {request.detail}")
    scheduler.free()
    return ends, invalid


if __name__ == "__main__":
    with load_model(sys.argv[1], context=256, sequences=32) as model:
        ends, invalid = generations(model, int(sys.argv[2]))
    print(f"{len(list(cases()))} constraints; {dict(ends)}; {len(invalid)} not valid")
    print("\n".join(invalid[:50]))
