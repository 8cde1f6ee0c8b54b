"""`lltool set`: changes the metadata of a GGUF file."""

from pathlib import Path
from typing import Any

from lltool.gguf.metadata import Value
from lltool.tools.arguments import command_parser, output_file, print_json
from lltool.tools.parser import CommandParser
from lltool.tools.terminal import printable

EXAMPLES = """
lltool set model.gguf tokenizer.ggml.eos_token_id=2
lltool set model.gguf --template chatml.jinja
lltool set model.gguf general.name="My model" general.license=str:mit --remove general.url
lltool set model.gguf llama.context_length=8192 -o other.gguf
"""


def parser() -> CommandParser:
    parser = command_parser(
        "set",
        "Changes the metadata of a GGUF file, in place where that is safe. The tensors stay as they are.",
        EXAMPLES,
        json_flag=True,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="a GGUF file, or any shard of a split model")
    add(
        "settings", metavar="KEY=VALUE", nargs="*",
        help="a new value, of the type that the key has; for a new key KEY=TYPE:VALUE, TYPE int, float, bool, str, or "
        "one as inspect shows it, such as uint64 or int32[]; arrays are written as in JSON",
    )  # fmt: skip
    add("--remove", metavar="KEY", action="append", default=[], help="remove a key (can be given several times)")
    add("--template", metavar="FILE", type=Path, help="set the chat template to the text of a file")
    add("-o", "--output", metavar="OUT", type=output_file, help="write a new file and leave MODEL as it is")
    add("--dry-run", action="store_true", help="say what would change, and change nothing")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.gguf.architecture_keys import show
    from lltool.gguf.describe import plain_value
    from lltool.gguf.edit import Changes, edit_gguf, removal
    from lltool.quant.edits import parse_setting
    from lltool.tools.progress import progress_bar

    template = _read_template(arguments.template)
    after: dict[str, Value | None] = {}

    def change(metadata: Any) -> Changes:
        after.update(parse_setting(text, metadata) for text in arguments.settings)
        after.update(template)
        after.update(removal(arguments.model, metadata, key) for key in arguments.remove)
        return after

    def plain(value: Value | None) -> Any:
        return None if value is None else plain_value(value)

    with progress_bar("B", arguments.model.name) as progress:
        done = edit_gguf(arguments.model, change, output=arguments.output, dry_run=arguments.dry_run, progress=progress)
    if arguments.json:
        print_json(
            {
                "path": str(done.path),
                "changes": {key: [plain(old), plain(after[key])] for key, old in done.before.items()},
                "in_place": done.in_place,
                "bytes_written": done.bytes,
                "dry_run": arguments.dry_run,
            }
        )
        return 0
    for key, old in done.before.items():
        texts = ["none" if value is None else printable(show(value)) for value in (old, after[key])]
        print(f"{printable(key)}: {texts[0]} -> {texts[1]}")
    would = "would write" if arguments.dry_run else "wrote"
    if done.in_place:
        print(
            f"{done.path}: {would} {done.bytes:,} bytes in place" if done.before else f"{done.path}: nothing to change"
        )
    else:
        print(f"{done.path}: {would} a new file of {done.bytes:,} bytes")
    return 0


def _read_template(path: Path | None) -> dict[str, Value]:
    """The chat template as a key. Raises InputError if it is not valid Jinja."""
    if path is None:
        return {}
    from lltool.engine.text.chat import TEMPLATE_KEY
    from lltool.engine.text.template_process import TemplateProcess
    from lltool.gguf.metadata import string
    from lltool.gguf.text_file import read_prompt

    source = read_prompt(path)
    process = TemplateProcess(source, str(path), None)
    try:
        process.compile()
    finally:
        process.close()
    return {TEMPLATE_KEY: string(source)}
