"""Parses the names of peers on a command line."""

import shutil
from pathlib import Path
from typing import Any

from lltool.eval.bench.peers.llama_bench import LlamaBench
from lltool.eval.bench.peers.peer import Peer
from lltool.eval.bench.peers.python_peers import DTYPES, LlamaCppPython, Transformers
from lltool.gguf.errors import InputError

WANTED = "transformers[:float32|bfloat16|FOLDER|PYTHON], llama-cpp-python[:PYTHON], llama-bench:PATH"


def parse_peer(text: str) -> Peer:
    """The peer of a name with options after colons; a Python alone stands for its llama-cpp-python.

    Raises InputError for other texts.
    """
    name, *given = text.split(":")
    if "" in given:
        raise InputError(f"--peer {text}: nothing follows the colon; wanted {WANTED}")
    match name, given:
        case "transformers", _:
            return _transformers(text, given)
        case "llama-cpp-python", []:
            return LlamaCppPython()
        case "llama-cpp-python", [python]:
            return LlamaCppPython(python)
        case "llama-bench", []:
            found = shutil.which("llama-bench")
            if found is None:
                raise InputError("--peer llama-bench: there is none in PATH; give its path: llama-bench:PATH")
            return LlamaBench(Path(found))
        case "llama-bench", [path]:
            return LlamaBench(Path(path))
        case _, []:
            if shutil.which(text):
                return LlamaCppPython(text)
    raise InputError(f"--peer {text}: neither a peer nor a Python that can be run; wanted {WANTED}")


def _transformers(text: str, given: list[str]) -> Transformers:
    options: dict[str, Any] = {}
    for part in given:
        if part in DTYPES:
            options["dtypes"] = (*options.get("dtypes", ()), part)
        elif (Path(part) / "config.json").exists():
            options["folder"] = Path(part)
        elif shutil.which(part):
            options["python"] = part
        else:
            raise InputError(
                f"--peer {text}: {part} is neither a type ({', '.join(DTYPES)}), nor a folder with a config.json, "
                "nor a Python"
            )
    return Transformers(**options)
