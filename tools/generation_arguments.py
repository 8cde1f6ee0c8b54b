"""Arguments that `lltool run` and `lltool chat` share: the model, the prompt, sampling, and the chat template."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.gguf.errors import InputError
from lltool.gguf.text_file import decode_argument, read_prompt, read_text
from lltool.tools.arguments import (
    MODEL,
    add_escape_arguments,
    add_model_arguments,
    find_named_model,
    positive,
    take_name,
)
from lltool.tools.constraint_arguments import add_constraint_arguments, read_constraint
from lltool.tools.engine_arguments import add_engine_arguments, engine_options
from lltool.tools.sampling_arguments import add_sampling_arguments
from lltool.tools.tool_arguments import add_tool_arguments

if TYPE_CHECKING:
    from lltool.engine.generate import Generation
    from lltool.engine.model import Model
    from lltool.engine.text.chat import ChatTemplate


MOST_USED = "-m -hf -p -f -i -n --temp --top-k --top-p --min-p -s -sys --raw --stats -c -t"


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_arguments(parser, "MODEL [PROMPT]", f"{MODEL}; words after it are the prompt, as with -p")
    add("-p", "--prompt", help="the prompt; in a chat, the first message")
    add("-f", "--file", type=Path, help="a file with the prompt, UTF-8; a final line end is dropped")
    add(
        "-n",
        "--predict",
        "--max-tokens",
        type=int,
        default=-1,
        metavar="N",
        help="tokens at most (default -1: no limit; -2: until the context is full)",
    )
    add(
        "--context-shift",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="when the context is full, drop the older half of the text and go on (default: end)",
    )
    add(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="with --context-shift: tokens of the prompt that always stay (default 0; -1: all)",
    )
    add_sampling_arguments(parser)
    add_constraint_arguments(parser)
    add_tool_arguments(parser)
    add("-r", "--reverse-prompt", action="append", default=[], metavar="TEXT", help="stop at this text")
    add_escape_arguments(parser, "-p and -r")
    add("-sys", "--system", "--system-prompt", dest="system", metavar="TEXT", help="the system message of a chat")
    add("--chat-template-file", type=Path, metavar="FILE", help="a Jinja template instead of the model's")
    add(
        "--special",
        action="store_true",
        help="in a chat, treat <|im_end|> and the like in messages as control tokens (default: as text)",
    )
    add("--stats", action="store_true", help="in a chat, print what each answer took")
    add("--no-history", action="store_true", help="in a chat, keep no history of what is typed")
    add("-c", "--ctx-size", type=positive, help="context in tokens (default: the model's, at most 4096)")
    add("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    add("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    add_engine_arguments(parser)


def parse_generation_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses and checks the arguments, with the escapes of texts replaced."""
    arguments = parser.parse_args(argv)
    arguments.model = take_name(arguments, more=True)
    if arguments.words:
        if arguments.prompt is not None or arguments.file is not None:
            raise InputError(f"{arguments.words[0]!r}: -p or -f gives the prompt already; leave one of them out")
        arguments.prompt = " ".join(arguments.words)
    if arguments.prompt is not None and arguments.file is not None:
        raise InputError("-p and -f both give a prompt; leave one of them out")
    read_constraint(arguments)  # before the model is loaded
    if arguments.predict < -2:
        raise InputError(f"-n {arguments.predict}, wanted a number of tokens, -1 for no limit, or -2 for the context's")
    if arguments.keep < -1:
        raise InputError(f"--keep {arguments.keep}, wanted a number of tokens, or -1 for all of the prompt")
    escapes = arguments.escape
    if arguments.prompt is not None:
        arguments.prompt = decode_argument(arguments.prompt, "-p", escapes=escapes)
    arguments.reverse_prompt = [decode_argument(text, "-r", escapes=escapes) for text in arguments.reverse_prompt]
    if arguments.system is not None:
        arguments.system = decode_argument(arguments.system, "--system")
    return arguments


def given_prompt(arguments: argparse.Namespace) -> str | None:
    """The prompt of -p or -f."""
    if arguments.file is not None:
        return read_prompt(arguments.file).removesuffix("\n")
    prompt: str | None = arguments.prompt
    return prompt


def load_requested_model(arguments: argparse.Namespace) -> "Model":
    from lltool.engine.model import load_model

    options = engine_options(arguments)
    arguments.model = find_named_model(arguments.model, offline=arguments.offline)
    return load_model(
        arguments.model,
        context=arguments.ctx_size,
        batch=arguments.batch_size,
        precision=arguments.precision,
        **options,
    )


def max_tokens(arguments: argparse.Namespace) -> int | None:
    return None if arguments.predict < 0 else arguments.predict


def kept_tokens(arguments: argparse.Namespace) -> int | None:
    """How many tokens of the prompt stay when the context is full; None if the text ends then."""
    return arguments.keep if arguments.context_shift and arguments.predict != -2 else None


def shift_note(generation: "Generation", context: int) -> str:
    """What a generation has lost when the context was full for the first time."""
    return (
        f"the context of {context} tokens is full: after the first {generation.kept}, the older half of the text is "
        f"dropped ({generation.dropped} tokens now, and again whenever it is full), and the model no longer sees it"
    )


def read_requested_template(arguments: argparse.Namespace, model: "Model") -> "ChatTemplate":
    """The chat template of the command line, or else of the model. Raises InputError if there is none."""
    from lltool.engine.text.chat import ChatTemplate, read_chat_template

    path = arguments.chat_template_file
    if path is not None:
        return ChatTemplate.compile(read_text(path), model.tokenizer, str(path))
    return read_chat_template(model.file, model.tokenizer)
