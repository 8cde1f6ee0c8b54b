"""Peers that are Python packages, in this environment or another: llama-cpp-python and transformers."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lltool.eval.bench.peers.peer import Engine
from lltool.eval.bench.peers.worker import Worker, ask_version
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.common.provenance import tool_digest
from lltool.eval.common.store import Store
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.quant.convert.export import export

_HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LlamaCppPython:
    """The llama-cpp-python that is installed for the interpreter `python`."""

    python: str = sys.executable

    def find_missing(self) -> str | None:
        if ask_version(self.python, "import llama_cpp; print(llama_cpp.__version__)") is None:
            return f"{self.python} has no llama-cpp-python; `pip install llama-cpp-python` there"
        return None

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Engine]:
        if (settings.type_k, settings.type_v) != ("f16", "f16"):
            raise InputError(
                f"-ctk {settings.type_k}: the peer llama-cpp-python runs with a cache of f16; leave out -ctk"
            )
        sizes = [settings.threads, max(run.context for run in runs), settings.batch, settings.ubatch]
        if any(run.sequences > 1 for run in runs):
            raise InputError("the peer llama-cpp-python runs one sequence at a time; leave out -npl, or the peer")
        script, arguments = _HERE / "worker_llama_cpp.py", [str(settings.model), *map(str, sizes)]
        with ExitStack() as stack:
            engines: list[Engine] = []
            for repack in (1, 0):
                mode = "repack" if repack else "no repack"
                engine = Worker(self.python, script, [*arguments, f"{repack}"], "llama-cpp-python", mode)
                stack.callback(engine.close)
                engines.append(engine)
            stack.pop_all()
            return engines


@dataclass(frozen=True)
class Transformers:
    """transformers of the interpreter `python`, on the checkpoint in `folder` or one exported from the GGUF file."""

    python: str = sys.executable
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    folder: Path | None = None
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "lltool" / "checkpoints")

    def find_missing(self) -> str | None:
        code = "from importlib.metadata import version as v; print(v('torch'), v('transformers'))"
        if ask_version(self.python, code) is None:
            return f"{self.python} has no torch and transformers; `pip install torch transformers` there"
        return None

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Engine]:
        if any(run.sequences > 1 for run in runs):
            raise InputError("the peer transformers runs one sequence at a time; leave out -npl, or the peer")
        folder = self.folder or export_once(settings.model, self.cache)
        with ExitStack() as stack:
            engines = []
            for dtype in self.dtypes:
                arguments = [str(folder), str(settings.threads), dtype]
                engine = Worker(self.python, _HERE / "worker_transformers.py", arguments, "transformers", dtype)
                stack.callback(engine.close)
                engine.columns = {**engine.columns, "type_k": _short(dtype), "type_v": _short(dtype)}
                engines.append(engine)
            stack.pop_all()
            return list(engines)


def export_once(model: Path, cache: Path) -> Path:
    """Exports the GGUF file as a checkpoint, which `cache` keeps under the file's digest."""
    digest = sha256_of([model])
    store = Store(cache, {"source": digest, "tool": tool_digest()})
    return store.make(f"{model.stem}-{digest[:12]}", {}, lambda target: export(model, target))


def _short(dtype: str) -> str:
    return {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
