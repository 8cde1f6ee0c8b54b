"""What the parsers of all commands have in common."""

import argparse


def command_parser(
    command: str, description: str, examples: str, *, json_flag: bool = False
) -> argparse.ArgumentParser:
    """A parser for `lltool COMMAND` whose help ends with `examples`, one command a line."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser = argparse.ArgumentParser(
        prog=f"lltool {command}",
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if json_flag:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser
