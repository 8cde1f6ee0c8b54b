"""Decoders with a classifier instead of an output matrix: rerankers and reward models, which score the last token."""

from dataclasses import replace

from lltool.quant.convert.families import gemma, llama, phi, qwen2, qwen3
from lltool.quant.convert.families.encoder_settings import Labels
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.gemma3 import GEMMA3
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stablelm import FAMILIES as STABLELM

_NO_EXPORT = "this version exports decoders without their classifiers"


def _classified(family: Family) -> Family:
    name = family.models[0].replace("ForCausalLM", "ForSequenceClassification")
    return replace(
        family,
        models=(name.replace("Gemma3F", "Gemma3TextF"), name) if family is GEMMA3 else (name,),
        rows=(
            *(row for row in family.rows if not row.targets[0].startswith("output.")),
            Row("cls.output.weight", "score.weight", ("_labels", "width")),
        ),
        settings=(*family.settings, Labels()),
        restores=lambda stored: False,
        no_export=_NO_EXPORT,
    )


_DECODERS = (llama.LLAMA, llama.MISTRAL, qwen2.QWEN2, qwen3.QWEN3, *gemma.FAMILIES, GEMMA3)
FAMILIES = tuple(_classified(family) for family in (*_DECODERS, *phi.FAMILIES, STABLELM[0]))
