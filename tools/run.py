"""`lltool run`: generates text; without a prompt on a terminal, it is `lltool chat`."""

import argparse
import sys
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import command_parser, print_json, read_standard_input
from lltool.tools.constraint_arguments import read_constraint, requested_matcher
from lltool.tools.generation_arguments import (
    MOST_USED,
    add_generation_arguments,
    given_prompt,
    load_requested_model,
    max_tokens,
    parse_generation_arguments,
    read_requested_template,
)
from lltool.tools.parser import CommandParser
from lltool.tools.sampling_arguments import make_sampler, shipped_note
from lltool.tools.talk import note
from lltool.tools.timings import timing_lines
from lltool.tools.tool_arguments import call_line, call_report, read_tool_use

if TYPE_CHECKING:
    from lltool.engine.calls.chat_format import ToolUse
    from lltool.engine.generate import Generation, Token
    from lltool.engine.model import Model
    from lltool.engine.sampling import Sampler
    from lltool.engine.text.chat import ChatTemplate, Message
    from lltool.engine.text.tokenizer import Tokenizer

EXAMPLES = """
lltool run model.gguf "Why is the sky blue?"
lltool run -m model.gguf -p "Why is the sky blue?" -n 200
lltool run -hf ggml-org/gemma-3-270m-it-GGUF:Q8_0 -p "Why is the sky blue?"
lltool run model.gguf                                 # a chat, as lltool chat
lltool run model.gguf --raw -p "A poem about the sea:\\n" --temp 0
lltool run model.gguf -f prompt.txt --json | jq .text
lltool run model.gguf "Is it raining in Paris?" --tools tools.json
lltool run model.gguf "Name a colour." --regex "[a-z]+"
"""
DERIVED_TIMES = ("prompt_rate", "decode_seconds", "decode_rate", "evaluate_rate")


def main(argv: list[str]) -> int:
    arguments = _parse(argv)
    use = read_tool_use(arguments)
    prompt = _read_prompt(arguments)
    if arguments.interactive or prompt is None:
        from lltool.tools.chat import converse

        return converse(arguments, prompt)
    from lltool.engine.generate import generate

    start = perf_counter()
    with load_requested_model(arguments) as model:
        model_seconds = perf_counter() - start
        sampler = make_sampler(arguments, model.file.metadata)
        if not arguments.json and (shipped := shipped_note(arguments, model.file.metadata)):
            note(shipped)
        tokenizer, template = model.tokenizer, _choose_template(arguments, model)
        load = {"model": model_seconds, "tokenizer": perf_counter() - start - model_seconds}
        if use is not None:
            assert template is not None
            return _answer_with_tools(arguments, prompt, model, template, sampler, use, load)
        ids = _encode(prompt, template, tokenizer, arguments)
        generation = generate(
            model,
            ids,
            sampler=sampler,
            max_tokens=max_tokens(arguments),
            stop=arguments.reverse_prompt,
            matcher=requested_matcher(arguments, model, ids),
        )
        if arguments.json:
            tokens = list(generation)
            print_json(_report(arguments, prompt, generation, tokens, load))
        else:
            if template is None and not arguments.no_display_prompt:
                print(prompt, end="", flush=True)
            _print_stream(generation)
            for line in timing_lines(generation, sum(load.values())):
                print(line, file=sys.stderr)
    return 0


def parser() -> CommandParser:
    parser = command_parser(
        "run",
        "Generates text: an answer to a prompt, or with --raw its continuation. "
        "Without a prompt on a terminal, it is lltool chat.",
        EXAMPLES,
        json_flag=True,
        most_used=MOST_USED,
    )
    add_generation_arguments(parser)
    add = parser.add_argument
    add("-i", "--interactive", action="store_true", help="chat; a prompt becomes the first message")
    add("--raw", "--no-chat", "--no-conversation", dest="raw", action="store_true", help="continue the prompt as it is")
    add("--no-display-prompt", action="store_true", help="with --raw: print only the new text")
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    arguments = parse_generation_arguments(parser(), argv)
    for flag in ("--system", "--chat-template-file", "--interactive", "--tools"):
        if arguments.raw and getattr(arguments, flag[2:].replace("-", "_")):
            raise InputError(f"{flag} is for a chat, but --raw only continues a prompt; leave one of them out")
    return arguments


def _read_prompt(arguments: argparse.Namespace) -> str | None:
    """The prompt, or None for a chat that starts without one."""
    prompt = given_prompt(arguments)
    if prompt is None and not arguments.interactive and not sys.stdin.isatty():
        prompt = read_standard_input().removesuffix("\n")
    if prompt is None and arguments.raw:
        raise InputError("--raw continues a prompt; give one with -p or -f")
    if arguments.json and (prompt is None or arguments.interactive):
        raise InputError("--json reports one answer, not a chat; give a prompt with -p or -f")
    return prompt


def _choose_template(arguments: argparse.Namespace, model: "Model") -> "ChatTemplate | None":
    """The chat template of the command line or of the model; None if the prompt is continued as it is."""
    from lltool.engine.text.chat import TEMPLATE_KEY

    is_chat = any(each is not None for each in (arguments.chat_template_file, arguments.system, arguments.tools))
    if not arguments.raw and not is_chat and TEMPLATE_KEY not in model.file.metadata:
        note("the model has no chat template: continuing the prompt as it is (as with --raw)")
        return None
    return None if arguments.raw else read_requested_template(arguments, model)


def _encode(
    prompt: str, template: "ChatTemplate | None", tokenizer: "Tokenizer", arguments: argparse.Namespace
) -> list[int]:
    if template is None:
        return tokenizer.with_begin(tokenizer.encode(prompt, add_special=False, parse_special=True))
    return template.encode(_messages(prompt, arguments), parse_special=arguments.special)


def _messages(prompt: str, arguments: argparse.Namespace) -> "list[Message]":
    if not prompt:
        raise InputError("the prompt is empty; only --raw can continue an empty text")
    system: list[Message] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    return [*system, {"role": "user", "content": prompt}]


def _answer_with_tools(
    arguments: argparse.Namespace,
    prompt: str,
    model: "Model",
    template: "ChatTemplate",
    sampler: "Sampler",
    use: "ToolUse",
    load: dict[str, float],
) -> int:
    """Prints an answer, and then each call of a tool as a line of JSON."""
    from lltool.engine.calls.reply import reply

    answer = reply(
        model,
        template,
        _messages(prompt, arguments),
        use,
        sampler=sampler,
        max_tokens=max_tokens(arguments),
        stop=arguments.reverse_prompt,
        parse_special=arguments.special,
        constraint=read_constraint(arguments),
    )
    for piece in answer:
        if not arguments.json:
            print(piece.reasoning + piece.content, end="", flush=True)
    if arguments.json:
        found = {"text": answer.content, "reasoning": answer.reasoning, "calls": list(map(call_report, answer.calls))}
        report = _report(arguments, prompt, answer.generation, answer.tokens, load)
        print_json(report | found | {"reason": answer.reason})
        return 0
    if answer.content or answer.reasoning:
        print()
    for call in answer.calls:
        print(call_line(call))
    for line in timing_lines(answer.generation, sum(load.values())):
        print(line, file=sys.stderr)
    return 0


def _print_stream(generation: "Generation") -> None:
    """Prints an answer as it is generated."""
    try:
        for token in generation:
            print(token.text, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    print(flush=True)


def _report(
    arguments: argparse.Namespace,
    prompt: str,
    generation: "Generation",
    tokens: "list[Token]",
    load: dict[str, float],
) -> dict[str, Any]:
    """The JSON report; `load` has the seconds that loading each part of the model took."""
    from lltool.engine.sampling_settings import SETTINGS

    times = generation.timings
    return {
        "model": str(arguments.model),
        "prompt": prompt,
        "seed": generation.sampler.seed,
        "sampling": {name: getattr(generation.sampler, name) for name in SETTINGS},
        "text": "".join(token.text for token in tokens),
        "tokens": [token.id for token in tokens],
        "reason": generation.reason,
        "detail": generation.detail,
        "load_seconds": sum(load.values()),
        "load": load,
        "timings": asdict(times) | {name: getattr(times, name) for name in DERIVED_TIMES},
    }
