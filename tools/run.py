"""`lltool run`: generates text; without a prompt on a terminal, it is `lltool chat`."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import check_output
from lltool.tools.arguments import command_parser, print_json, read_standard_input
from lltool.tools.constraint_arguments import read_constraint, requested_matcher
from lltool.tools.generation_arguments import (
    MOST_USED,
    add_generation_arguments,
    given_prompt,
    kept_tokens,
    load_requested_model,
    max_tokens,
    parse_generation_arguments,
    read_requested_template,
    shift_note,
)
from lltool.tools.parser import CommandParser
from lltool.tools.sampling_arguments import make_sampler, shipped_note
from lltool.tools.talk import note
from lltool.tools.timings import timing_lines
from lltool.tools.tool_arguments import call_line, call_report, read_tool_use

if TYPE_CHECKING:
    from lltool.engine.calls.chat_format import ToolUse
    from lltool.engine.generate import Dialogue, Generation, Token
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
    from lltool.engine.generate import Dialogue, Generation

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
        dialogue = Dialogue(model)
        _restore(dialogue, arguments)
        generation = Generation(
            dialogue,
            ids,
            sampler,
            max_tokens(arguments),
            arguments.reverse_prompt,
            keep=kept_tokens(arguments),
            matcher=requested_matcher(arguments, model, ids),
        )
        if arguments.json:
            tokens = list(_saving(generation, arguments))
            print_json(_report(arguments, prompt, generation, tokens, load))
        else:
            if template is None and not arguments.no_display_prompt:
                print(prompt, end="", flush=True)
            _print_stream(generation, arguments, model.context)
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
    add("--prompt-cache", type=Path, metavar="FILE", help="begin with the state in FILE, and save it after the prompt")
    add("--prompt-cache-all", action="store_true", help="save it after the answer instead")
    add("--prompt-cache-ro", action="store_true", help="read FILE, and do not change it")
    add("--no-display-prompt", action="store_true", help="with --raw: print only the new text")
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    arguments = parse_generation_arguments(parser(), argv)
    for flag in ("--system", "--chat-template-file", "--interactive", "--tools"):
        if arguments.raw and getattr(arguments, flag[2:].replace("-", "_")):
            raise InputError(f"{flag} is for a chat, but --raw only continues a prompt; leave one of them out")
    if arguments.prompt_cache is None and (arguments.prompt_cache_all or arguments.prompt_cache_ro):
        raise InputError("--prompt-cache-all and --prompt-cache-ro say what happens to the file of --prompt-cache")
    if arguments.prompt_cache_all and arguments.prompt_cache_ro:
        raise InputError("--prompt-cache-all saves a state, and --prompt-cache-ro saves none; leave one of them out")
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
    if arguments.prompt_cache is not None and (prompt is None or arguments.interactive):
        raise InputError("--prompt-cache is for one answer, not a chat; give a prompt with -p or -f")
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


def _restore(dialogue: "Dialogue", arguments: argparse.Namespace) -> None:
    """Reads the state of --prompt-cache, if its file exists."""
    path = arguments.prompt_cache
    if path is None:
        return
    if not path.exists():
        if arguments.prompt_cache_ro:
            raise InputError(f"{path}: no such file, and with --prompt-cache-ro none is made; leave that out once")
        check_output(path)
        return
    note(f"{path}: has the state of {dialogue.restore(path)} tokens")


def _saving(generation: "Generation", arguments: argparse.Namespace) -> "Iterator[Token]":
    """Passes the tokens on; saves the state after the prompt, or with --prompt-cache-all after the last token."""
    path, waits = arguments.prompt_cache, arguments.prompt_cache_all
    saves = path is not None and not arguments.prompt_cache_ro
    for token in generation:
        yield token
        if saves and not waits:
            saves = False
            if generation.timings.prompt_tokens > 1:  # one token is always computed anew
                _save(generation, path)
    if saves:
        _save(generation, path)


def _save(generation: "Generation", path: Path) -> None:
    note(f"{path}: the state of {generation.dialogue.save(path)} tokens is saved")


def _print_stream(generation: "Generation", arguments: argparse.Namespace, context: int) -> None:
    """Prints an answer as it is generated."""
    is_shifted = False
    try:
        for token in _saving(generation, arguments):
            print(token.text, end="", flush=True)
            if generation.dropped and not is_shifted:
                is_shifted = True
                note(shift_note(generation, context))
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
        "dropped": generation.dropped,
        "detail": generation.detail,
        "load_seconds": sum(load.values()),
        "load": load,
        "timings": asdict(times) | {name: getattr(times, name) for name in DERIVED_TIMES},
    }
