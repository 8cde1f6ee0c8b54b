"""Tiny tokenizers of the kinds that checkpoints have, trained on a few lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = """The quick brown fox jumps over the lazy dog. It's 2024, isn't it? They've 12345 reasons, we'll see them all.
def main(argv: list[str]) -> int:\n    for i in range(10):\n        print(f"{i}: {i ** 2}")\n    return 0\n
The old man went to the sea, and the sea went to the old man; the dog and the fox went there together, then rested.
Grüße aus Köln, à bientôt, señor! 你好世界 привет мир こんにちは  \t\n\n  The end of the story and of the day."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write_byte_level(folder: Path, split: str) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json as Llama 3 and Qwen 2 have; returns the config's token ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=split == LLAMA3_SPLIT))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=370, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>"])
    bos = "<|endoftext|>" if split == LLAMA3_SPLIT else None
    if bos:
        from tokenizers import processors

        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return _save(tokenizer, folder, bos=bos, eos="<|im_end|>", pad="<|endoftext|>")


def write_sentencepiece(folder: Path, *, prefix: bool = True, model_file: bool = True) -> dict[str, Any]:
    """A SentencePiece BPE model with byte fallback as Llama 2 has, as tokenizer.model or only as the tokenizer.json.

    Without `prefix` it is like Gemma's: no space put in front.
    """
    import io

    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 4),
        model_writer=blob,
        vocab_size=370,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        minloglevel=2,
    )
    if model_file:
        (folder / "tokenizer.model").write_bytes(blob.getvalue())
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
        return {"bos_token_id": 1, "eos_token_id": 2}
    return _save(_fast_from_sentencepiece(blob.getvalue(), prefix), folder, bos="<s>", eos="</s>", pad=None)


def _fast_from_sentencepiece(blob: bytes, prefix: bool) -> Any:
    """The `tokenizers` equal of a SentencePiece BPE model, built as Hugging Face's own conversion describes it."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    sp = sentencepiece.SentencePieceProcessor(model_proto=blob)
    vocab = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    ranked = []
    for piece, id in vocab.items():
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = sorted((vocab[a], vocab[b], a, b) for a, b in halves if a in vocab and b in vocab)
        ranked += [(-sp.get_score(id), n, (a, b)) for n, (_, _, a, b) in enumerate(pairs)]
    merges = [pair for *_, pair in sorted(ranked, key=lambda item: item[:2])]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    if not prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _save(tokenizer: Any, folder: Path, *, bos: str | None, eos: str, pad: str | None) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    config = {**tokens, "add_bos_token": bos is not None, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False})
    )
    ids = {key + "_id": tokenizer.token_to_id(token) if token else None for key, token in tokens.items()}
    return ids


TOKENIZERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "llama3": lambda folder: write_byte_level(folder, LLAMA3_SPLIT),
    "qwen2": lambda folder: write_byte_level(folder, QWEN2_SPLIT),
    "spm": write_sentencepiece,
    "spm-json": lambda folder: write_sentencepiece(folder, model_file=False),
    "gemma": lambda folder: write_sentencepiece(folder, prefix=False, model_file=False),
}
