"""The options of sampling, made from the table of settings, and the sampler that they and the model ask for."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lltool.tools.arguments import checked

if TYPE_CHECKING:
    from lltool.engine.sampling import Sampler
    from lltool.gguf.metadata import Value

_LISTS = ("texts", "biases")  # kinds of settings whose flags can be given several times


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds llama.cpp's options of sampling. What is not given stays None, so that the model's own settings count."""
    from lltool.engine.sampling_settings import (
        DEFAULTS,
        SETTINGS,
        parse_setting,
        parse_step_letters,
        show_setting_value,
    )

    group = parser.add_argument_group(
        "sampling", "The defaults are those of the model's file, if it has some, and else:"
    )
    for name, about in SETTINGS.items():
        if about.kind == "flag":
            group.add_argument(*about.flags, dest=name, action="store_const", const=True, help=about.help)
            continue
        default = {"seed": "-1", "biases": "none"}.get(about.kind) or show_setting_value(name, DEFAULTS[name])
        group.add_argument(
            *about.flags,
            dest=name,
            type=checked(partial(parse_setting, name)),
            action="append" if about.kind in _LISTS else "store",
            metavar={"steps": "STEPS", "texts": "TEXT", "biases": "TOKEN±BIAS"}.get(about.kind, "N"),
            help=f"{about.help} (default {default})".replace("%", "%%"),
        )
    group.add_argument(
        "--sampling-seq", "--sampler-seq", dest="samplers", type=checked(parse_step_letters), metavar="LETTERS",
        help="--samplers in llama.cpp's letters, as edskypmxt",
    )  # fmt: skip


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line gives."""
    from lltool.engine.sampling_settings import SETTINGS

    given = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    join: Mapping[str, Callable[[Any], Any]] = {
        "texts": lambda parts: () if () in parts else tuple(text for part in parts for text in part),
        "biases": lambda parts: {id: bias for part in parts for id, bias in part.items()},
    }
    return {
        name: join[kind](value) if (kind := SETTINGS[name].kind) in join else value for name, value in given.items()
    }


def make_sampler(arguments: argparse.Namespace, metadata: "Mapping[str, Value]") -> "Sampler":
    """A sampler of what the command line gives and, beyond that, of what the metadata of the model's file ships."""
    from lltool.engine.sampling import Sampler
    from lltool.engine.sampling_settings import shipped_settings

    given = given_settings(arguments)
    return Sampler(**shipped_settings(metadata, given=list(given)) | given)


def shipped_note(arguments: argparse.Namespace, metadata: "Mapping[str, Value]") -> str | None:
    """Says which settings come from the model's file; None if it has none, or the command line replaces them all."""
    from lltool.engine.sampling_settings import shipped_settings, show_setting_value

    shipped = shipped_settings(metadata, given=list(given_settings(arguments)))
    shown = ", ".join(f"{name} {show_setting_value(name, value)}" for name, value in shipped.items())
    return f"sampling settings from the model's file: {shown}" if shown else None
