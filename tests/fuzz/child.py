"""One target under atheris: `python -m tests.fuzz.child TARGET CORPUS SCRATCH_FOLDER [libFuzzer's options]`."""

import hashlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FunctionType, ModuleType

import atheris

from lltool.gguf.errors import InputError
from tests.fuzz.targets import TARGETS

MAX_SECONDS = 2.0  # of processor time, for one input


def main() -> None:
    name, corpus, scratch, *options = sys.argv[1:]
    logging.disable()
    warnings.simplefilter("ignore")
    target, folder = TARGETS[name], Path(scratch)
    for seed in target.seeds(folder):
        (Path(corpus) / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    with suppress(InputError):
        target.run(b"", folder)  # imports what it needs, outside the time that an input may take

    def run(data: bytes) -> None:
        started = time.process_time()
        message = ""
        try:
            target.run(data, folder)
        except InputError as error:
            message = str(error)
        assert "\n" not in message, "a message of several lines"
        assert time.process_time() - started < MAX_SECONDS, "more than 2 s for one input"

    # atheris's own import hook does not see modules that an editable install finds.
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("lltool."):
            for function in functions_of(module):
                atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], corpus, *options], run)
    atheris.Fuzz()


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """The functions that a module defines, methods and properties of its classes included."""
    found: list[object] = []
    for value in vars(module).values():
        found += vars(value).values() if isinstance(value, type) and value.__module__ == module.__name__ else [value]
    for value in found:
        for part in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__"))):
            if isinstance(part, FunctionType) and part.__module__ == module.__name__:
                yield part


if __name__ == "__main__":
    main()
