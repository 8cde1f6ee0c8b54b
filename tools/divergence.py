"""The part of `lltool perplexity` that holds a model against another one."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is about divergence to the arguments of `lltool perplexity`."""


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for a comparison."""
    return False


def run(arguments: argparse.Namespace) -> int:
    """Compares, prints, and gives the exit code."""
    raise NotImplementedError
