"""Verifies a converted file against its checkpoint as transformers runs it: tokenizer, template, blocks and logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool import __version__
from lltool.engine.check_conversion import find_token_difference
from lltool.engine.config import ModelConfig
from lltool.engine.memory import available_memory
from lltool.engine.models.architectures import trace_header
from lltool.engine.text.tokenizer import read_tokenizer
from lltool.eval.verify.oracle import Oracle, open_oracle
from lltool.eval.verify.stages import LogitsComparison, Stage, compare_stages
from lltool.gguf.edit import edit_gguf
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, boolean, string
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.quant.convert.checkpoint import open_checkpoint
from lltool.quant.convert.hard_texts import TEXTS

SHORT = ("The capital of France is", "def fibonacci(n):")
LONG_TOKENS = 256
"""The default length of the long prompt, in tokens."""

_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Verdict:
    """What was found. `tokenizer` and `template` are differences, None if there are none; `notes` are for the user."""

    model: Path
    checkpoint: str
    tokenizer: str | None
    template: str | None
    stages: list[Stage]
    logits: LogitsComparison
    notes: list[str]

    @property
    def first(self) -> Stage | None:
        """The first stage that departs."""
        return next((stage for stage in self.stages if stage.departs), None)

    @property
    def differences(self) -> list[str]:
        """One line for each thing that is not the same."""
        found = []
        if self.tokenizer:
            found.append(f"tokenizer: {self.tokenizer}")
        if self.template:
            found.append(f"chat template: {self.template}")
        if self.first:
            others = sum(stage.departs for stage in self.stages) - 1
            more = f"; so do {others} later stages" if others > 1 else "; so does one later stage" if others else ""
            found.append(
                f"{self.first.name} departs: its error is {self.first.error:.2g} of what it adds, "
                f"at most {self.first.limit:.2g} is rounding{more}"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "checkpoint": self.checkpoint,
            "same": not self.differences,
            "differences": self.differences,
            "first_departing": self.first and self.first.name,
            "logits": vars(self.logits),
            "stages": [{**vars(stage), "departs": stage.departs} for stage in self.stages],
            "notes": self.notes,
        }


def verify(
    model: str | Path,
    checkpoint: str | Path,
    *,
    tokens: int = LONG_TOKENS,
    by_layer: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Compares a GGUF file with the checkpoint, a folder or an id on the Hub, that it was made from.

    The prompts are short ones and one of `tokens` tokens. With `by_layer`, one layer of the checkpoint at a time is in
    memory; by default if all do not fit. Raises InputError for files that cannot be read and without transformers.
    """
    opened = open_checkpoint(checkpoint)
    with open_gguf(model) as file:
        config, _ = trace_header(file)
        if by_layer is None:
            needed, free = 4 * sum(tensor.rows * tensor.columns for tensor in file.tensors), available_memory()
            by_layer = free is not None and needed > free * 3 // 4
        notes = ["the checkpoint does not fit in memory, so it is read layer by layer"] if by_layer else []
        with open_oracle(opened.path, config.layers, by_layer=by_layer) as oracle:
            if oracle.tokenizer is None:
                notes.append("transformers cannot read the checkpoint's tokenizer, so the file's makes the prompts")
            answers = [oracle.answer(ids) for ids in _prompts(file, config, oracle, tokens)]
            difference = find_token_difference(file.metadata, opened.path)
            template = _compare_templates(file.metadata, oracle.tokenizer)
        stages, logits = compare_stages(file, answers, progress)
        return Verdict(Path(model), opened.name, difference, template, stages, logits, notes)


def stamp(verdict: Verdict) -> None:
    """Writes the verdict into the file's metadata."""
    found = "; ".join(verdict.differences)
    logits = verdict.logits
    numbers = {"nmse": logits.nmse, "divergence": logits.divergence, "top1": logits.top1, "top5": logits.top5}
    changes: dict[str, Value | None] = {
        "lltool.verify.same": boolean(not found),
        "lltool.verify.differences": string(found) if found else None,
        "lltool.verify.checkpoint": string(verdict.checkpoint),
        "lltool.verify.version": string(__version__),
        **{f"lltool.verify.{key}": Value(ValueType.FLOAT32, value) for key, value in numbers.items()},
    }
    edit_gguf(
        verdict.model,
        lambda metadata: {key: value for key, value in changes.items() if value is not None or key in metadata},
    )


def _prompts(file: GGUFFile, config: ModelConfig, oracle: Oracle, tokens: int) -> list[list[int]]:
    """The ids of the short prompts and of a long one."""
    own = None if oracle.tokenizer else read_tokenizer(file)

    def encode(text: str) -> list[int]:
        ids = own.encode(text) if own else oracle.tokenizer(text)["input_ids"]
        return [int(id) for id in ids]

    limit, text = min(tokens, config.context_length), "\n\n".join(TEXTS)
    long: list[int] = encode(text)
    long = (long * -(-limit // max(1, len(long))))[:limit]
    prompts = [ids for ids in (*map(encode, SHORT), long) if ids]
    if any(id >= config.vocab for ids in prompts for id in ids):
        raise InputError(f"{file.path}: has {config.vocab} tokens, but the checkpoint's tokenizer gives larger ids")
    return [ids[:limit] for ids in prompts]


def _compare_templates(metadata: Mapping[str, Value], tokenizer: Any) -> str | None:
    """How the file's chat templates differ from the checkpoint's, as transformers reads them."""
    if tokenizer is None:
        return None
    wanted = tokenizer.chat_template
    wanted = wanted if isinstance(wanted, dict) else {"default": wanted} if wanted else {}
    found = {
        key.removeprefix(_TEMPLATE).removeprefix(".") or "default": str(value.data)
        for key, value in metadata.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    for name in sorted(wanted.keys() | found.keys()):
        ours, theirs = found.get(name), wanted.get(name)
        if ours is None or theirs is None:
            return f"{name!r} is in the {'checkpoint' if ours is None else 'file'} only"
        if ours != theirs:
            lines = zip(ours.splitlines(), theirs.splitlines(), strict=False)
            at = next((number for number, (one, other) in enumerate(lines, 1) if one != other), None)
            return f"{name!r} differs " + (f"in line {at}" if at else "at its end")
    return None
