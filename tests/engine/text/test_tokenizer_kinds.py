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
from tests.tokenizer_kinds import mixed_lines, save, unigram, unigram_model, wordpiece

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


@pytest.mark.parametrize("form", ["t5", "old", "bytes", "albert"])
def test_unigram(form: str, tmp_path: Path) -> None:
    wanted = unigram(form)
    save(wanted, tmp_path)
    metadata, notes = read(tmp_path, wanted.get_vocab_size())
    assert metadata["tokenizer.ggml.model"].data == "t5"
    assert ("tokenizer.huggingface.json" in metadata) == (form == "albert")
    assert any("NFKD" in note and "other programs leave these steps out" in note for note in notes) == (
        form == "albert"
    )
    assert metadata["tokenizer.ggml.remove_extra_whitespaces"].data == (form != "bytes")
    assert metadata["tokenizer.ggml.add_eos_token"].data is True
    assert metadata["tokenizer.ggml.eos_token_id"].data == 2
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("a word") == wanted.encode("a word").ids
    check_lines(tokenizer, wanted)
    assert compare_tokenizers(tokenizer, tmp_path / "tokenizer.json") is None


@pytest.mark.parametrize("kind", ["T5Tokenizer", "XLMRobertaTokenizer"])
def test_unigram_model_files(kind: str, tmp_path: Path) -> None:
    """A spiece.model gives SentencePiece's ids, which XLM-R moves by one; extra ids and the mask follow."""
    import sentencepiece

    blob = unigram_model()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=blob)
    size = theirs.get_piece_size()
    is_t5 = kind == "T5Tokenizer"
    (tmp_path / ("spiece.model" if is_t5 else "sentencepiece.bpe.model")).write_bytes(blob)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "extra_ids": 3}))
    metadata, _ = read(tmp_path, size + (3 if is_t5 else 2))
    tokens = metadata["tokenizer.ggml.tokens"].data
    assert tokens[size:] == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"] if is_t5 else [tokens[size], "<mask>"]
    tokenizer = Tokenizer.from_gguf(metadata)
    moved = {0: 3, 1: 0, 2: 2} if not is_t5 else {}  # <unk>, <s>, </s>
    back = {id if is_t5 else moved.get(id, id + 1): id for id in range(size)}
    assert tokenizer.kind.normalize is not None
    others = 0
    for line in mixed_lines(LINES):
        line = line.replace("\x85", "")  # white space to `tokenizers`, an unknown character to SentencePiece
        if tokenizer.kind.normalize(line).split() != theirs.normalize(line).replace("▁", " ").split():
            others += 1  # with decomposed Hangul and Kana, which `tokenizers` leaves as they are
            continue
        ids, wanted = [back[id] for id in tokenizer.encode(line, add_special=False)], theirs.encode(line)
        if ids != wanted:  # they choose differently only among equally probable ways to split a text
            found, best = (sum(map(theirs.get_score, row)) for row in (ids, wanted))
            assert found == pytest.approx(best), line
    assert others < LINES // 20
    first, last = ([], [2]) if is_t5 else ([0], [2])
    assert tokenizer.encode("a word") == [*first, *tokenizer.encode("a word", add_special=False), *last]
