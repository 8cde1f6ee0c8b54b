"""Small tokenizers of every kind, trained on the spot, and lines of mixed text to compare them on."""

import json
import random
from pathlib import Path
from typing import Any

from lltool.engine.text.hard_texts import TEXTS

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def mixed_lines(count: int) -> list[str]:
    """Lines of parts of the hard texts, in all languages, cut anywhere and joined at random."""
    draw = random.Random(0)
    lines = []
    for _ in range(count):
        parts = []
        for text in draw.choices(TEXTS, k=draw.randint(1, 3)):
            start = draw.randint(0, len(text))
            parts.append(text[start : start + draw.randint(1, 40)])
        lines.append(draw.choice(("", " ", "  ", "\n")).join(parts))
    return lines


def save(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """The files of a checkpoint's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def wordpiece(**normalizer: bool) -> Any:
    """A tokenizer as BERT has it, trained on the hard texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=BERT_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:-15], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
