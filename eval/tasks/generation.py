"""Measures how a model's generated texts vary, and how near they are to references.

Diversity of the samples of one prompt: distinct-n (Li et al. 2016), the share of distinct n-grams among their n-grams,
and self-BLEU (Zhu et al. 2018), the BLEU of each sample against the others. Relevance of samples to a prompt's
references: chrF (Popović 2015) and, with a BERT model on disk, BERTScore (Zhang et al. 2020). Words are those of
sacrebleu's tokenizer 13a.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import Model
from lltool.engine.sampling import Sampler
from lltool.engine.text.chat import read_chat_template
from lltool.eval.common.chat_file import messages_of, read_records
from lltool.eval.common.intervals import mean_error
from lltool.eval.common.steps import CountProgress
from lltool.eval.common.tables import format_table
from lltool.eval.scoring.likelihood import encode
from lltool.eval.scoring.perplexity_report import describe_run
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.gguf.text_file import read_prompt
from lltool.quant.convert.checkpoint import read_json

NGRAMS = (1, 2, 3)


@dataclass(frozen=True)
class Prompt:
    """A text to continue or messages to answer, and reference texts."""

    text: str | None
    messages: tuple[dict[str, Any], ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Sampling:
    """How texts are sampled; sample i of prompt p has a seed of its own, made of `seed`, p and i."""

    samples: int = 4
    max_tokens: int = 64
    temperature: float = 0.8
    seed: int = 0


@dataclass(frozen=True)
class Measure:
    """A mean over prompts and its standard error; a prompt whose texts are too short is NaN and left out of both."""

    mean: float
    error: float
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> "Measure":
        numbers = [value for value in values if not isnan(value)]
        return Measure(*(mean_error(numbers) if numbers else (nan, nan)), tuple(values))


def read_prompts(path: Path) -> list[Prompt]:
    """Reads JSON lines with `prompt` (a text) or `messages` (a chat), and optionally `reference` or `references`.

    A chat without references can also be a bare list of messages.
    Raises InputError that names the line.
    """
    prompts = []
    for place, record in read_records(read_prompt(path), str(path)):
        given = record if isinstance(record, dict) else {}
        text, messages = given.get("prompt"), messages_of(record)
        if not (isinstance(text, str) and given.get("messages") is None) and not (messages and text is None):
            found = json.dumps(record, ensure_ascii=False)[:40]
            raise InputError(f"{place}: {found!r}, wanted a prompt (a text) or messages (of role and content)")
        references = given.get("references", given.get("reference", []))
        references = [references] if isinstance(references, str) else references
        if not isinstance(references, list) or not all(isinstance(item, str) for item in references):
            raise InputError(f"{place}: references {references!r}, wanted a text or several")
        prompts.append(Prompt(text, tuple(messages or ()), tuple(references)))
    if not prompts:
        raise InputError(f"{path}: no prompts")
    if len({bool(prompt.references) for prompt in prompts}) > 1:
        raise InputError(f"{path}: some prompts have references and some have none; wanted all or none")
    return prompts


def generate_samples(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, *, progress: CountProgress | None = None
) -> list[list[str]]:
    """The texts that the model generates for each prompt. Raises InputError for a prompt that exceeds its context."""
    dialogue = Dialogue(model)
    found: list[list[str]] = []
    try:
        for number, ids in enumerate(_encode(model, prompts)):
            found.append([])
            for index in range(sampling.samples):
                seed = np.random.SeedSequence([sampling.seed, number, index]).generate_state(1)
                sampler = Sampler(temperature=sampling.temperature, seed=int(seed[0]))
                text = "".join(token.text for token in Generation(dialogue, ids, sampler, sampling.max_tokens))
                found[-1].append(text)
                if progress:
                    progress(number * sampling.samples + index + 1, len(prompts) * sampling.samples)
    finally:
        dialogue.free()
    return found


def _encode(model: Model, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    template = None
    for prompt in prompts:
        if prompt.text is not None:
            yield encode(model, prompt.text)
        else:
            template = template or read_chat_template(model.file, model.tokenizer)
            yield template.encode(prompt.messages)


@dataclass(frozen=True)
class Scorers:
    """The libraries that compare texts: sacrebleu's metrics and, if asked for, bert-score with a model."""

    sacrebleu: Any
    bert: Any = None


def find_scorers(prompts: Sequence[Prompt], bert: Path | None = None) -> Scorers:
    """Loads the scorers. Raises InputError if a library, or the model for BERTScore in the folder `bert`, is missing.

    BERTScore uses the layer that bert-score recommends for a model with the folder's name, else the last one.
    """
    require("sacrebleu", "scores of generated texts")
    from sacrebleu import metrics

    if bert is None:
        return Scorers(metrics)
    if not prompts[0].references:
        raise InputError("BERTScore compares with references, and the prompts have none")
    if not (bert / "config.json").is_file():
        raise InputError(f"{bert}: no model for BERTScore; wanted a folder with config.json, such as roberta-large's")
    require("bert_score", "BERTScore")
    from bert_score import BERTScorer
    from bert_score.utils import model2layers

    layers = read_json(bert / "config.json")["num_hidden_layers"]
    layer = model2layers.get(bert.resolve().name, layers)
    return Scorers(metrics, BERTScorer(model_type=str(bert), num_layers=layer, device="cpu"))


def measure_samples(
    samples: Sequence[Sequence[str]], references: Sequence[Sequence[str]], scorers: Scorers
) -> dict[str, Measure]:
    """Measures of the samples of each prompt, by name; relevance is measured if all prompts have references."""
    bleu, chrf = scorers.sacrebleu.BLEU(effective_order=True), scorers.sacrebleu.CHRF()
    words = [[bleu.tokenizer(text).split() for text in texts] for texts in samples]
    measures = {f"distinct-{n}": [distinct(texts, n) for texts in words] for n in NGRAMS}
    if all(len(texts) > 1 for texts in samples):
        measures["self-BLEU"] = [
            _mean(bleu.sentence_score(text, [*texts[:place], *texts[place + 1 :]]) for place, text in enumerate(texts))
            for texts in samples
        ]
    if all(references):
        pairs = list(zip(samples, map(list, references), strict=True))
        measures["chrF"] = [_mean(chrf.sentence_score(text, wanted) for text in texts) for texts, wanted in pairs]
        if scorers.bert:
            measures["BERTScore"] = [
                float(scorers.bert.score(list(texts), [wanted] * len(texts))[2].mean()) for texts, wanted in pairs
            ]
    return {name: Measure.of(values) for name, values in measures.items()}


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """The share of distinct n-grams among all n-grams of the texts, which are lists of words; NaN if there are none."""
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else nan


def format_measures(measures: Mapping[str, Measure]) -> str:
    rows = [
        (name, f"{found.mean:.4f}", f"{found.error:.4f}", str(len(found.values))) for name, found in measures.items()
    ]
    return format_table(("measure", "mean", "+/-", "prompts"), rows)


def to_record(
    model: Model,
    path: Path,
    sampling: Sampling,
    samples: Sequence[Sequence[str]],
    measures: Mapping[str, Measure],
) -> dict[str, Any]:
    return {
        **describe_run(model),
        "task": "generation",
        "file": str(path),
        "file_sha256": sha256_of([path]),
        "context": model.context,
        "sampling": asdict(sampling),
        "measures": {
            name: {"mean": found.mean, "standard_error": found.error, "prompts": found.values}
            for name, found in measures.items()
        },
        "texts": samples,
    }


def _mean(scores: Iterable[Any]) -> float:
    """The mean of sacrebleu's scores, 0 to 100."""
    return float(np.mean([found.score for found in scores]))
