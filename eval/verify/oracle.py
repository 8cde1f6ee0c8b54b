"""A checkpoint as transformers runs it: the outputs of all its stages for a prompt, in float32."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lltool.eval.verify.stages import Answer, Floats
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require

# What transformers raises for a checkpoint that it cannot read, besides errors of the system.
_ERRORS = (ValueError, KeyError, AttributeError, ImportError, RuntimeError, TypeError)


@contextmanager
def open_oracle(folder: Path, layers: int, *, by_layer: bool = False) -> "Iterator[Oracle]":
    """Loads a checkpoint; with `by_layer`, each layer is read when it runs, so that one at a time is in memory.

    Code that comes with a checkpoint is never run. Raises InputError without transformers (and, for `by_layer`, without
    accelerate) and for a checkpoint that transformers cannot read.
    """
    require("transformers", "lltool verify")
    if by_layer:
        require("accelerate", "lltool verify --layer-by-layer")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="lltool-verify-") as scratch:
        try:
            options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True}
            if by_layer:
                options |= {"device_map": _on_disk(folder, layers), "offload_folder": scratch}
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        except (OSError, *_ERRORS) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder}: transformers cannot load it: {reason}") from None
        yield Oracle(folder, model, _find_layers(model, layers, folder)[1])


def _on_disk(folder: Path, layers: int) -> dict[str, str]:
    """Where accelerate keeps each module: layers on the disk, everything else in memory."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    name, _ = _find_layers(model, layers, folder)
    places = {f"{name}.{number}": "disk" for number in range(layers)}
    for other, module in model.named_modules():
        if not name.startswith(f"{other}.") and other and not other.startswith(name) and not any(module.children()):
            places[other] = "cpu"
    return places


def _find_layers(model: Any, layers: int, folder: Path) -> tuple[str, Any]:
    """The name of the list of the model's decoder layers, and the list."""
    import torch

    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
    if not lists:
        raise InputError(f"{folder}: transformers' model has no list of {layers} layers, which the file has")
    return min(lists, key=lambda found: found[0].count("."))


class Oracle:
    """A model of transformers. `tokenizer` is None if transformers cannot read the checkpoint's."""

    def __init__(self, folder: Path, model: Any, layers: Any) -> None:
        self._folder, self._model, self._layers = folder, model, layers
        self.tokenizer = _load_tokenizer(folder)

    def answer(self, ids: list[int]) -> Answer:
        """All stages' outputs for a prompt."""
        import torch

        states: list[Floats] = []

        def enter(module: Any, args: Any, named: Any) -> None:
            states.append(_rows(args[0] if args else named["hidden_states"]))

        def leave(module: Any, args: Any, output: Any) -> None:
            states.append(_rows(output[0] if isinstance(output, tuple) else output))

        hooks = [self._layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
        hooks += [layer.register_forward_hook(leave) for layer in self._layers]
        try:
            with torch.no_grad():
                logits = self._model(torch.tensor([ids]), use_cache=False).logits
        except (OSError, *_ERRORS) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self._folder}: transformers cannot run it: {reason}") from None
        finally:
            for hook in hooks:
                hook.remove()
        return Answer(np.array(ids, np.int32), states, _rows(logits))


def _rows(values: Any) -> Floats:
    """A copy of (1, T, width) or (T, width) as (T, width)."""
    rows: Floats = values.detach().float().numpy().reshape(-1, values.shape[-1]).copy()
    return rows


def _load_tokenizer(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, *_ERRORS):
        return None
