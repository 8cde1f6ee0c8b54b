"""`lltool run`: generate text, or chat."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile
from lltool.tools.arguments import command_parser, positive, print_json
from lltool.tools.engine_arguments import add_engine_arguments, engine_options

if TYPE_CHECKING:
    from lltool.engine.chat import ChatTemplate, Message
    from lltool.engine.generate import Dialogue, Generation, Timings, Token
    from lltool.engine.sampling import Sampler
    from lltool.engine.tokenizer import Tokenizer

EXAMPLES = """
lltool run -m model.gguf -p "Why is the sky blue?" -n 200
lltool run -m model.gguf                              # chat; /help tells more
lltool run -m model.gguf --raw -p "Once upon a time" --temp 0
lltool run -m model.gguf -f prompt.txt --json | jq .text
"""
DERIVED_TIMES = ("prompt_rate", "decode_seconds", "decode_rate", "evaluate_rate")
CHAT_HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer"


def main(argv: list[str]) -> int:
    arguments = _parse(argv)
    from lltool.engine.generate import Dialogue
    from lltool.engine.model import load_model
    from lltool.engine.sampling import Sampler

    if arguments.predict < -1:
        raise InputError(f"-n {arguments.predict}, wanted a number of tokens, or -1 for no limit")
    sampler = Sampler(
        arguments.temp,
        arguments.top_k,
        arguments.top_p,
        arguments.min_p,
        seed=None if arguments.seed == -1 else arguments.seed,
    )
    prompt = _read_prompt(arguments)
    start = perf_counter()
    with load_model(
        arguments.model,
        context=arguments.ctx_size,
        batch=arguments.batch_size,
        precision=arguments.precision,
        **engine_options(arguments),
    ) as model:
        model_seconds = perf_counter() - start
        is_chat = arguments.interactive or prompt is None or arguments.system is not None
        template = _choose_template(arguments, model.tokenizer, model.file, is_chat=is_chat)
        load = {"model": model_seconds, "tokenizer": perf_counter() - start - model_seconds}
        dialogue = Dialogue(model)
        session = _Session(dialogue, sampler, template, arguments, load)
        if arguments.interactive or prompt is None:
            session.chat(prompt)
        else:
            session.answer_once(prompt)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_parser(
        "run",
        "Generates text. With a prompt, an answer to it (or with --raw its continuation); without one, a chat.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("-m", "--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("-p", "--prompt", help="the prompt (default: standard input, or a chat on a terminal)")
    parser.add_argument("-f", "--file", type=Path, help="a file with the prompt, UTF-8")
    parser.add_argument("-i", "--interactive", action="store_true", help="chat; a prompt given is the first message")
    parser.add_argument(
        "-n", "--predict", type=int, default=-1, metavar="N", help="tokens at most (default -1: no limit)"
    )
    parser.add_argument(
        "--temp", type=float, default=0.8, help="temperature; 0 takes the likeliest token (default 0.8)"
    )
    parser.add_argument("--top-k", type=int, default=40, help="sample from this many tokens (default 40; 0: all)")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="and of these from this much probability (default 0.95)"
    )
    parser.add_argument("--min-p", type=float, default=0.05, help="and this much of the likeliest one's (default 0.05)")
    parser.add_argument("-s", "--seed", type=int, default=-1, help="same seed, same text (default -1: random)")
    parser.add_argument("-r", "--reverse-prompt", action="append", default=[], metavar="TEXT", help="stop at this text")
    parser.add_argument("-sys", "--system", metavar="TEXT", help="the system message of a chat")
    parser.add_argument(
        "--chat-template-file", type=Path, metavar="FILE", help="a Jinja template instead of the file's"
    )
    parser.add_argument(
        "--raw", "--no-chat", "-no-cnv", dest="raw", action="store_true", help="continue the prompt as it is"
    )
    parser.add_argument("--no-display-prompt", action="store_true", help="with --raw: print only what is new")
    parser.add_argument(
        "-c", "--ctx-size", type=positive, help="context in tokens (default: the model's, at most 4096)"
    )
    parser.add_argument("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    add_engine_arguments(parser)
    arguments = parser.parse_args(argv)
    for flag in ("--system", "--chat-template-file", "--interactive"):
        if arguments.raw and getattr(arguments, flag[2:].replace("-", "_")):
            raise InputError(f"{flag} is for a chat and --raw is none; leave one of them out")
    if arguments.prompt is not None and arguments.file is not None:
        raise InputError("-p and -f are both prompts; leave one of them out")
    return arguments


def _read_prompt(arguments: argparse.Namespace) -> str | None:
    """The prompt, or None for a chat that starts without one."""
    from lltool.eval.text import read_text

    prompt: str | None = arguments.prompt
    if arguments.file is not None:
        prompt = read_text(arguments.file).removesuffix("\n")
    elif prompt is None and not arguments.interactive and not sys.stdin.isatty():
        prompt = sys.stdin.read().removesuffix("\n")
    if prompt == "":
        raise InputError("the prompt is empty")
    if prompt is None and arguments.raw:
        raise InputError("--raw continues a prompt; give one with -p or -f")
    if arguments.json and (prompt is None or arguments.interactive):
        raise InputError("--json reports one answer, not a chat; give a prompt with -p or -f")
    return prompt


def _choose_template(
    arguments: argparse.Namespace, tokenizer: "Tokenizer", file: GGUFFile, *, is_chat: bool
) -> "ChatTemplate | None":
    """The template of the command line or of the model; None to continue the prompt as it is."""
    from lltool.engine.chat import TEMPLATE_KEY, ChatTemplate
    from lltool.eval.text import read_text

    if arguments.raw:
        return None
    if arguments.chat_template_file is not None:
        return ChatTemplate.compile(read_text(arguments.chat_template_file), tokenizer)
    if TEMPLATE_KEY not in file.metadata and not is_chat:
        print("lltool: the model has no chat template: continuing the prompt as it is (as with --raw)", file=sys.stderr)
        return None
    try:
        return ChatTemplate.from_gguf(file.metadata, tokenizer)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None


@dataclass
class _Session:
    """A loaded model and what is said to it; `load` has the seconds that its parts took to be ready."""

    dialogue: "Dialogue"
    sampler: "Sampler"
    template: "ChatTemplate | None"
    arguments: argparse.Namespace
    load: dict[str, float]

    def answer_once(self, prompt: str) -> None:
        """Answers or continues a prompt, as text or as JSON."""
        if self.template is not None:
            ids = self.template.encode([*self.system_messages(), {"role": "user", "content": prompt}])
        else:
            ids = self.dialogue.model.tokenizer.encode(prompt, parse_special=True)
        generation = self.generate(ids)
        if self.arguments.json:
            tokens = list(generation)
            print_json(self.report(prompt, generation, tokens))
            return
        if self.template is None and not self.arguments.no_display_prompt:
            print(prompt, end="", flush=True)
        _print_stream(generation)
        self.print_timings(generation)

    def chat(self, first: str | None) -> None:
        """Answers messages until the input ends; the cache keeps what was said."""
        assert self.template is not None
        with suppress(ImportError):
            import readline  # noqa: F401 (gives input() editing and history)
        model = self.dialogue.model
        print(f"{self.arguments.model.name}, context {model.context}. {CHAT_HELP}", file=sys.stderr)
        messages = self.system_messages()
        while (line := first if first is not None else _read_line()) is not None:
            first = None
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    print(CHAT_HELP, file=sys.stderr)
                    continue
                case "/clear":
                    messages = self.system_messages()
                    continue
            messages.append({"role": "user", "content": line})
            try:
                generation = self.generate(self.template.encode(messages))
                text = _print_stream(generation, interruptible=True)
                messages.append({"role": "assistant", "content": text})
                self.print_timings(generation)
            except InputError as error:
                # The conversation is too long, or the template refuses it: take the message back and go on.
                print(f"lltool: error: {error}; /clear starts over", file=sys.stderr)
                messages.pop()

    def generate(self, ids: Sequence[int]) -> "Generation":
        from lltool.engine.generate import Generation

        limit = None if self.arguments.predict == -1 else self.arguments.predict
        return Generation(self.dialogue, ids, self.sampler, limit, self.arguments.reverse_prompt)

    def system_messages(self) -> "list[Message]":
        return [{"role": "system", "content": self.arguments.system}] if self.arguments.system else []

    def print_timings(self, generation: "Generation") -> None:
        times = generation.timings
        cached = f" and {times.cached} cached" if times.cached else ""
        parts = (
            f"load {sum(self.load.values()):.2f} s",
            f"prompt {times.prompt_tokens}{cached} tokens, {times.prompt_rate:.1f} t/s",
            f"first token {times.first_token_seconds:.2f} s",
            f"{times.tokens} tokens, {times.decode_rate:.1f} t/s",
            generation.detail or "interrupted",
        )
        print(f"[{' | '.join(parts)}]", file=sys.stderr)
        if times.tokens > 1:
            costs = {"sampling": times.sample_seconds, "text": times.text_seconds, "output": times.output_seconds}
            items = [f"model {_milliseconds(times.evaluate_seconds, times)} ({times.evaluate_rate:.1f} t/s)"]
            items += [f"{name} {_milliseconds(seconds, times)}" for name, seconds in costs.items()]
            print(f"[a token: {' + '.join(items)} ms]", file=sys.stderr)

    def report(self, prompt: str, generation: "Generation", tokens: "list[Token]") -> dict[str, Any]:
        times = generation.timings
        return {
            "model": str(self.arguments.model),
            "prompt": prompt,
            "text": "".join(token.text for token in tokens),
            "tokens": [token.id for token in tokens],
            "reason": generation.reason,
            "detail": generation.detail,
            "load_seconds": sum(self.load.values()),
            "load": self.load,
            "timings": asdict(times) | {name: getattr(times, name) for name in DERIVED_TIMES},
        }


def _milliseconds(seconds: float, times: "Timings") -> str:
    """Of each token behind the first."""
    return f"{seconds * 1e3 / (times.tokens - 1):.2f}"


def _print_stream(generation: "Generation", *, interruptible: bool = False) -> str:
    """Prints an answer as it comes, and gives its text; Ctrl-C ends only the answer when it is `interruptible`."""
    text = ""
    try:
        for token in generation:
            text += token.text
            print(token.text, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        if not interruptible:
            raise
    else:
        print(flush=True)
    return text


def _read_line() -> str | None:
    """A line of the user's; None when there are no more."""
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print(f"\n{CHAT_HELP}", file=sys.stderr)
