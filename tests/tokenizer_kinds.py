"""Small tokenizers of every kind, trained on the spot, and lines of mixed text to compare them on."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from lltool.quant.convert.hard_texts import TEXTS
from lltool.quant.convert.sentencepiece_model import read_sentencepiece

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


@cache
def unigram_model(**settings: Any) -> bytes:
    """A SentencePiece Unigram model, trained on the hard texts."""
    import io

    import sentencepiece

    blob = io.BytesIO()
    lines = [line for text in TEXTS[:-10] for line in text.splitlines() if "\0" not in line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=blob,
        vocab_size=900,
        model_type="unigram",
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return blob.getvalue()


def unigram(form: str) -> Any:
    """A Unigram tokenizer.json: one of the forms that transformers has written for T5, XLM-R and others."""
    import tempfile

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    has_bytes = form == "bytes"
    rule = "identity" if has_bytes else "nmt_nfkc"
    blob = unigram_model(byte_fallback=has_bytes, normalization_rule_name=rule, remove_extra_whitespaces=not has_bytes)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(blob)
        model = read_sentencepiece(Path(file.name))
    tokenizer = Tokenizer(
        models.Unigram(list(zip(model.pieces, model.scores, strict=True)), unk_id=0, byte_fallback=has_bytes)
    )
    charsmap = [normalizers.Precompiled(model.charsmap)] if not has_bytes else []
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=not has_bytes)
    strip = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    before = [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    steps: dict[str, tuple[list[Any], list[Any]]] = {
        "t5": (charsmap, [pre_tokenizers.WhitespaceSplit(), metaspace]),
        "old": (charsmap + strip, [metaspace]),
        "bytes": ([], [metaspace]),
        "albert": (before + charsmap, [pre_tokenizers.WhitespaceSplit(), metaspace]),
    }
    tokenizer.normalizer = normalizers.Sequence(steps[form][0])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps[form][1])
    space = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    strip_first = decoders.Sequence([space, decoders.Strip(" ", 1, 0)])
    tokenizer.decoder = strip_first if has_bytes else decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>", "<extra_id_0>")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken("<sep>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer
