"""Tokenizers of checkpoints as GGUF keys give the same ids as Hugging Face's library and SentencePiece."""

import json
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.quant.convert.pretokenizer_match import PROBES, Match, match_pretokenizer
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS
from lltool.quant.convert.sentencepiece_model import TokenType, read_sentencepiece, write_sentencepiece
from lltool.quant.convert.vocabulary import read_vocabulary
from lltool.quant.convert.vocabulary_files import StoredVocabulary
from tests.tiny_tokenizers import CHAT, LLAMA3_SPLIT, QWEN2_SPLIT, TEXT, TOKENIZERS

TEXTS = (*PROBES, TEXT, "the dog and the sea  the   fox", "", " ", "a", "\n\n", "<|im_start|>the<think>end<|im_end|>")


def read(folder: Path, rows: int = 384, **config: Any) -> dict[str, Value]:
    return read_vocabulary(folder, config, rows).metadata()


@pytest.mark.parametrize("kind", ["llama3", "qwen2"])
def test_byte_level_ids(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as HuggingFace

    config = TOKENIZERS[kind](tmp_path)
    metadata = read(tmp_path, **config)
    wanted = HuggingFace.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in TEXTS:
        assert tokenizer.encode(text, parse_special=True) == wanted.encode(text).ids, text
    assert metadata["tokenizer.ggml.pre"].data == ("llama-bpe" if kind == "llama3" else "qwen2")
    assert metadata["tokenizer.ggml.eos_token_id"].data == wanted.token_to_id("<|im_end|>")
    assert metadata["tokenizer.ggml.add_bos_token"].data == (kind == "llama3")
    assert metadata["tokenizer.chat_template"].data == CHAT
    types = metadata["tokenizer.ggml.token_type"].data
    assert types[wanted.token_to_id("<|im_end|>")] == TokenType.CONTROL
    assert types[wanted.token_to_id("<think>")] == TokenType.USER_DEFINED
    assert len(types) == len(metadata["tokenizer.ggml.tokens"].data) == 384
    assert metadata["tokenizer.ggml.tokens"].data[383] == "[PAD383]"
    assert types[383] == TokenType.UNUSED


@pytest.mark.parametrize("kind", ["spm", "spm-json", "gemma"])
def test_sentencepiece_ids(kind: str, tmp_path: Path) -> None:
    """From a tokenizer.model, ids equal SentencePiece's; from a tokenizer.json alone, those of `tokenizers`."""
    import sentencepiece
    from tokenizers import Tokenizer as HuggingFace

    tokenizer = Tokenizer.from_gguf(read(tmp_path, **TOKENIZERS[kind](tmp_path)))
    if kind == "spm":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    else:
        fast = HuggingFace.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        wanted = [1, *processor.encode(text)] if kind == "spm" else fast.encode(text).ids
        assert tokenizer.encode(text) == wanted, text


def test_scores_from_merges_give_the_order_of_the_models_scores(tmp_path: Path) -> None:
    """The same vocabulary from tokenizer.model and from tokenizer.json gives the same ids."""
    TOKENIZERS["spm"](tmp_path / "model")
    TOKENIZERS["spm-json"](tmp_path / "json")
    by_score = Tokenizer.from_gguf(read(tmp_path / "model"))
    by_merge = Tokenizer.from_gguf(read(tmp_path / "json"))
    for text in TEXTS:
        assert by_score.encode(text) == by_merge.encode(text), text


def test_sentencepiece_file_both_ways(tmp_path: Path) -> None:
    import sentencepiece

    TOKENIZERS["spm"](tmp_path)
    model = read_sentencepiece(tmp_path / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert list(model.pieces) == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    assert list(model.scores) == [theirs.get_score(i) for i in range(theirs.get_piece_size())]
    assert [type == TokenType.BYTE for type in model.types] == [theirs.is_byte(i) for i in range(len(model.types))]
    again = sentencepiece.SentencePieceProcessor(model_proto=write_sentencepiece(model))
    for text in TEXTS:
        assert again.encode(text) == theirs.encode(text)
        assert again.decode(again.encode(text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize("content", [b"", b"\x0a\xff\xff", b"\xff" * 20, b"\x0a\x02\x08\x01", b"\x0f"])
def test_damaged_sentencepiece_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(
        InputError, match=r"tokenizer\.model: (not a SentencePiece model|a SentencePiece model of kind)"
    ):
        read_sentencepiece(tmp_path / "tokenizer.model")


def load(content: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(content))


def spec(*patterns: str, **flags: bool) -> dict[str, Any]:
    """A tokenizer.json with nothing but its pre-tokenizer."""
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level | flags]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }


# The spelling in checkpoints, and the name that readers of GGUF files know.
DIGITS = {"type": "Digits", "individual_digits": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPELLINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama-bpe": (spec(LLAMA3_SPLIT), True),
    "dbrx": (spec(LLAMA3_SPLIT), False),
    "qwen2": (spec(QWEN2_SPLIT), False),
    "tekken": (spec(TEKKEN), True),
    "gpt-2": (spec() | {"pre_tokenizer": BYTE_LEVEL}, False),
    "smollm": (spec() | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}}, False),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_pretokenizer_is_found_by_behaviour(name: str, tmp_path: Path) -> None:
    content, ignore_merges = SPELLINGS[name]
    assert match_pretokenizer(load(content), ignore_merges) == Match(name, len(PROBES))


@pytest.mark.parametrize(
    "name", ["deepseek-llm", "deepseek-coder", "deepseek-v3", "gpt-4o", "falcon", "default", "ufakzeka"]
)
def test_probes_distinguish_pretokenizers(name: str, tmp_path: Path) -> None:
    tokenizer = load(spec(*PRE_TOKENIZERS[name].patterns))
    assert match_pretokenizer(tokenizer, PRE_TOKENIZERS[name].ignore_merges) == Match(name, len(PROBES))


def test_unknown_pretokenizer_names_the_nearest(tmp_path: Path) -> None:
    TOKENIZERS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = spec(QWEN2_SPLIT.replace("|'ve", ""))["pre_tokenizer"]
    path.write_text(json.dumps(content))
    metadata, notes = read_with_notes(tmp_path)
    assert metadata["tokenizer.ggml.pre"].data == "qwen2"
    assert any("other programs split texts as qwen2 does, which splits 16 of 17 texts" in note for note in notes)
    check_ids(metadata, tmp_path)

    content["pre_tokenizer"] = spec(QWEN2_SPLIT.replace(r"\p{N}", r"\p{N}{1,2}"))["pre_tokenizer"]
    path.write_text(json.dumps(content))
    metadata, notes = read_with_notes(tmp_path)
    assert metadata["tokenizer.ggml.pre"].data == "embedded"
    assert any("the nearest, dbrx, splits 12 of 17" in note and "refuse the file" in note for note in notes)
    check_ids(metadata, tmp_path)

    metadata = read_vocabulary(tmp_path, {}, 384, pre="qwen2").metadata()
    assert metadata["tokenizer.ggml.pre"].data == "qwen2"
    check_ids(metadata, tmp_path)
    with pytest.raises(InputError, match=r"--pre none: unknown; this version knows default, gpt-2"):
        read_vocabulary(tmp_path, {}, 384, pre="none")


def read_with_notes(folder: Path) -> tuple[dict[str, Value], list[str]]:
    vocabulary = read_vocabulary(folder, {}, 384)
    return vocabulary.metadata(), vocabulary.notes


def check_ids(metadata: dict[str, Value], folder: Path) -> None:
    """The tokenizer of a file makes the ids of the checkpoint's tokenizer.json."""
    from tokenizers import Tokenizer as HuggingFace

    tokenizer, wanted = Tokenizer.from_gguf(metadata), HuggingFace.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        found = tokenizer.encode(text, add_special=False, parse_special=True)
        assert found == wanted.encode(text, add_special_tokens=False).ids, text


def test_merges_as_pairs_or_text_and_special_ids(tmp_path: Path) -> None:
    TOKENIZERS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    merges = read(tmp_path)["tokenizer.ggml.merges"].data
    content["model"]["merges"] = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    path.write_text(json.dumps(content))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [372, 370]}))
    metadata = read(tmp_path)
    assert metadata["tokenizer.ggml.merges"].data == merges
    assert metadata["tokenizer.ggml.eos_token_id"].data == 372
    assert metadata["tokenizer.ggml.eot_token_id"].data == 370
    assert "tokenizer.ggml.bos_token_id" not in metadata


def test_chat_templates_in_all_places(tmp_path: Path) -> None:
    TOKENIZERS["qwen2"](tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    metadata = read(tmp_path)
    assert metadata["tokenizer.chat_template"].data == "A"
    assert metadata["tokenizer.chat_templates"].data == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"].data == "B"
    (tmp_path / "chat_template.jinja").write_text("C")
    assert read(tmp_path)["tokenizer.chat_template"].data == "C"


def test_unsupported_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer: wanted"):
        read(tmp_path)
    TOKENIZERS["qwen2"](tmp_path)
    with pytest.raises(InputError, match="tokenizer of 374 tokens, but the embedding has 300 rows"):
        read(tmp_path, rows=300)


def test_what_keys_cannot_say_is_embedded(tmp_path: Path) -> None:
    """Normalizers, and a kind of vocabulary that GGUF does not have."""
    TOKENIZERS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))
    metadata, notes = read_with_notes(tmp_path)
    assert any("texts go through Lowercase" in note and "leave these steps out" in note for note in notes)
    check_ids(metadata, tmp_path)

    words = {word: id for id, word in enumerate(["<unk>", "the", "dog", "and", "sea", "fox"])}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    path.write_text(json.dumps({"model": model, "pre_tokenizer": {"type": "Whitespace"}}))
    (tmp_path / "tokenizer_config.json").unlink()
    metadata, notes = read_with_notes(tmp_path)
    assert metadata["tokenizer.ggml.model"].data == "huggingface"
    assert any("the vocabulary is of the kind WordLevel" in note and "refuse the file" in note for note in notes)
    check_ids(metadata, tmp_path)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("the fox and the dog")) == "the fox and the dog"


def test_characters_are_composed_where_tokenizer_json_does(tmp_path: Path) -> None:
    TOKENIZERS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    metadata, notes = read_with_notes(tmp_path)
    assert "tokenizer.huggingface.json" not in metadata
    assert any("composes characters first (NFC), as lltool does" in note for note in notes)
    check_ids(metadata, tmp_path)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_export_keeps_what_is_embedded_and_composition(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as HuggingFace

    TOKENIZERS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    for change in ({"normalizer": {"type": "NFC"}}, {"normalizer": {"type": "Lowercase"}}):
        path.write_text(json.dumps(content | change))
        exported = StoredVocabulary(read(tmp_path)).files(512)
        assert exported.keys() == {"tokenizer.json", "tokenizer_config.json"}
        ours, theirs = HuggingFace.from_buffer(exported["tokenizer.json"]), HuggingFace.from_file(str(path))
        for text in (*TEXTS, "Cafe\u0301 <|im_end|>"):
            assert ours.encode(text).ids == theirs.encode(text).ids, text
