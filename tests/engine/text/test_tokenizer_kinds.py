"""Every kind of vocabulary gives the ids of the library that made it, through the keys of a GGUF file."""

import json
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.text.tokenizer import StreamDecoder, Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.quant.convert.vocabulary import read_vocabulary
from tests.tokenizer_kinds import mixed_lines, save, wordpiece

LINES = 10_000


def read(folder: Path, rows: int, **config: Any) -> tuple[dict[str, Value], list[str]]:
    vocabulary = read_vocabulary(folder, config, rows)
    return vocabulary.metadata(), vocabulary.notes


def check_lines(tokenizer: Tokenizer, wanted: Any) -> None:
    """The same ids as `wanted`, of the `tokenizers` library, and the same text from them."""
    lines = mixed_lines(LINES)
    for line, theirs in zip(lines, wanted.encode_batch_fast(lines, add_special_tokens=False), strict=True):
        ids = tokenizer.encode(line, add_special=False, parse_special=True)
        assert ids == theirs.ids, line
        assert tokenizer.decode(ids) == wanted.decode(ids), line


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(lowercase: bool, tmp_path: Path) -> None:
    wanted = wordpiece(lowercase=lowercase)
    save(wanted, tmp_path, tokenizer_class="BertTokenizer", do_lower_case=lowercase)
    metadata, notes = read(tmp_path, wanted.get_vocab_size(), model_type="bert")
    assert not notes
    assert metadata["tokenizer.ggml.model"].data == "bert"
    tokens = metadata["tokenizer.ggml.tokens"].data
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[wanted.token_to_id("##s")] == "s"
    assert tokens[wanted.token_to_id("s")] == "▁s"
    named = {name: metadata[f"tokenizer.ggml.{name}_token_id"].data for name in ("bos", "cls", "seperator", "unknown")}
    assert named == {"bos": 2, "cls": 2, "seperator": 3, "unknown": 1}
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("a word") == wanted.encode("a word").ids
    check_lines(tokenizer, wanted)
    assert compare_tokenizers(tokenizer, tmp_path / "tokenizer.json") is None


def test_wordpiece_of_vocab_txt_and_its_settings(tmp_path: Path) -> None:
    """The files of BERT's first checkpoints: vocab.txt, and tokenizer_config.json with what differs."""
    wanted = wordpiece(lowercase=False, strip_accents=True)
    ids = wanted.get_vocab()
    (tmp_path / "vocab.txt").write_text("".join(f"{text}\n" for text in sorted(ids, key=ids.__getitem__)))
    settings = {"do_lower_case": False, "strip_accents": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    metadata, _ = read(tmp_path, len(ids), model_type="bert")
    check_lines(Tokenizer.from_gguf(metadata), wanted)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"vocab\.txt: has no token '\[UNK\]' for unknown words"):
        read(tmp_path, 2, model_type="bert")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "no"}))
    (tmp_path / "vocab.txt").write_text("[UNK]\n")
    with pytest.raises(InputError, match="do_lower_case: found 'no', wanted true or false"):
        read(tmp_path, 1, model_type="bert")


def test_settings_that_differ_from_tokenizer_json_count_and_are_noted(tmp_path: Path) -> None:
    tokenizer = wordpiece(lowercase=True)
    save(tokenizer, tmp_path, tokenizer_class="BertTokenizer", do_lower_case=False)
    metadata, notes = read(tmp_path, tokenizer.get_vocab_size())
    assert any("do_lower_case is false, but lowercase is true in tokenizer.json; the former" in note for note in notes)
    assert metadata["tokenizer.ggml.normalizer.lowercase"].data is False


def test_wordpiece_streams_words_with_their_spaces(tmp_path: Path) -> None:
    wanted = wordpiece()
    save(wanted, tmp_path)
    tokenizer = Tokenizer.from_gguf(read(tmp_path, wanted.get_vocab_size())[0])
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push(id) for id in tokenizer.encode("Well-known words, here!")]
    assert "".join(parts) == " well - known words, here!"
    assert parts[0] == parts[-1] == ""  # [CLS] and [SEP]


def test_words_of_more_than_100_characters_are_unknown(tmp_path: Path) -> None:
    wanted = wordpiece()
    save(wanted, tmp_path)
    tokenizer = Tokenizer.from_gguf(read(tmp_path, wanted.get_vocab_size())[0])
    assert len(tokenizer.encode("a" * 100, add_special=False)) > 1
    assert tokenizer.encode("a" * 101, add_special=False) == [wanted.token_to_id("[UNK]")]


@pytest.mark.parametrize(
    ("normalizer", "others"),
    [
        ({"handle_chinese_chars": False}, "take each as a word"),
        ({"clean_text": False}, "leave them out"),
    ],
)
def test_what_keys_cannot_say_of_wordpiece_is_embedded(
    normalizer: dict[str, bool], others: str, tmp_path: Path
) -> None:
    wanted = wordpiece(**normalizer)
    save(wanted, tmp_path)
    metadata, notes = read(tmp_path, wanted.get_vocab_size())
    assert any(f"lltool uses it; other programs {others}" in note for note in notes)
    check_lines(Tokenizer.from_gguf(metadata), wanted)
