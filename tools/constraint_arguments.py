"""Arguments that constrain what `lltool run` and `lltool chat` generate."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.gguf.errors import InputError
from lltool.gguf.text_file import read_text

if TYPE_CHECKING:
    from lltool.engine.grammar.constraint import Constraint
    from lltool.engine.grammar.matcher import Matcher
    from lltool.engine.model import Model

_FLAGS = ("--grammar", "--grammar-file", "--json-schema", "--json-schema-file", "--regex")


def add_constraint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("constrained output", "The answer follows one of these, and nothing else:")
    add = group.add_argument
    add("--grammar", metavar="GBNF", help="a grammar in GBNF, or in Lark if it begins with %%llguidance")
    add("--grammar-file", type=Path, metavar="FILE", help="the file of a grammar")
    add("-j", "--json-schema", metavar="SCHEMA", help="a JSON schema; {} is any JSON")
    add("-jf", "--json-schema-file", type=Path, metavar="FILE", help="the file of a JSON schema")
    add("--regex", metavar="PATTERN", help="a regular expression that matches the whole answer")


def read_constraint(arguments: argparse.Namespace) -> "Constraint | None":
    """The constraint of the command line. Raises InputError for two of them, and for what is not JSON."""
    from lltool.engine.grammar.constraint import Constraint

    given = [flag for flag in _FLAGS if getattr(arguments, flag[2:].replace("-", "_")) is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]}: an answer can have one constraint; leave one of them out")
    if arguments.grammar is not None:
        return Constraint.grammar(arguments.grammar)
    if arguments.grammar_file is not None:
        return Constraint.grammar(read_text(arguments.grammar_file))
    if arguments.json_schema is not None:
        return Constraint.json_schema(arguments.json_schema)
    if arguments.json_schema_file is not None:
        return Constraint.json_schema(read_text(arguments.json_schema_file))
    return None if arguments.regex is None else Constraint.regex(arguments.regex)


def requested_matcher(arguments: argparse.Namespace, model: "Model", ids: list[int]) -> "Matcher | None":
    """A matcher for the answer to the prompt `ids`. Raises InputError if the constraint cannot be honoured."""
    from lltool.engine.calls.reasoning import after_reasoning

    constraint = read_constraint(arguments)
    if constraint is None:
        return None
    return model.grammars.matcher(after_reasoning(constraint, ids, model.tokenizer))
