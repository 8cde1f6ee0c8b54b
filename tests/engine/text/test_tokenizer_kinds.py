"""Every kind of vocabulary gives the ids of the library that made it, through the keys of a GGUF file."""

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.text.tokenizer import StreamDecoder, Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.quant.convert.vocabulary import read_vocabulary
from tests.tiny_tokenizers import TOKENIZERS
from tests.tokenizer_kinds import (
    by_ranks,
    byte_tokens,
    mixed_lines,
    save,
    unigram,
    unigram_model,
    wordpiece,
    write_tiktoken,
)

LINES = 10_000

# The patterns in the files of Qwen 1, Kimi K2 and Mistral's Tekken, as those projects write them.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KIMI = "|".join(
    [
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        *(r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
    ]
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


@pytest.mark.parametrize("kind", ["qwen2", "llama3", "spm-json", "gemma"])
def test_merging(kind: str, tmp_path: Path) -> None:
    """Byte-level BPE, and SentencePiece BPE with byte fallback."""
    from tokenizers import Tokenizer as HuggingFace

    config = TOKENIZERS[kind](tmp_path)
    wanted = HuggingFace.from_file(str(tmp_path / "tokenizer.json"))
    check_lines(Tokenizer.from_gguf(read(tmp_path, 384, **config)[0]), wanted)


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


def check_ranks(tokenizer: Tokenizer, wanted: Callable[[str], list[int]], first: int = 0) -> None:
    """The ids of tiktoken's rules from `first` on, and every text again."""
    for line in mixed_lines(LINES // 4):
        ids = tokenizer.encode(line, add_special=False)
        assert ids == [id + first for id in wanted(line)], line
        assert tokenizer.decode(ids) == line


def test_qwen_tiktoken(tmp_path: Path) -> None:
    tokens = byte_tokens()
    write_tiktoken(tmp_path / "qwen.tiktoken", tokens)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": len(tokens)}))
    metadata, _ = read(tmp_path, len(tokens) + 220, model_type="qwen")
    assert metadata["tokenizer.ggml.pre"].data == "qwen2"
    assert metadata["tokenizer.ggml.tokens"].data[len(tokens) :][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.end_of_generation >= {len(tokens), len(tokens) + 2}
    check_ranks(tokenizer, by_ranks(tokens, QWEN))


def test_kimi_tiktoken(tmp_path: Path) -> None:
    tokens = byte_tokens()
    size = len(tokens)
    write_tiktoken(tmp_path / "tiktoken.model", tokens)
    named = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>"}
    decoder = {str(size + i): {"content": text, "special": True} for i, text in named.items()}
    settings = {"tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    metadata, _ = read(tmp_path, size + 256)
    assert metadata["tokenizer.ggml.pre"].data == "kimi-k2"
    assert metadata["tokenizer.ggml.tokens"].data[size + 2 : size + 4] == [
        "<|im_end|>",
        f"<|reserved_token_{size + 3}|>",
    ]
    assert metadata["tokenizer.ggml.eos_token_id"].data == size + 1
    check_ranks(Tokenizer.from_gguf(metadata), by_ranks(tokens, KIMI))


def test_tekken(tmp_path: Path) -> None:
    """Special tokens come first; `default_vocab_size` says how many of the file's tokens count."""
    tokens = byte_tokens()
    rows = [{"rank": rank, "token_bytes": b64encode(t).decode(), "token_str": None} for rank, t in enumerate(tokens)]
    special = [
        {"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(["<unk>", "<s>", "</s>", "[INST]"])
    ]
    config = {"pattern": TEKKEN, "default_vocab_size": len(tokens) - 50 + 10, "default_num_special_tokens": 10}
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": rows, "special_tokens": special}))
    metadata, notes = read(tmp_path, len(tokens) - 50 + 10)
    assert metadata["tokenizer.ggml.tokens"].data[2:5] == ["</s>", "[INST]", "<SPECIAL_4>"]
    assert [metadata[f"tokenizer.ggml.{name}_token_id"].data for name in ("bos", "eos", "unknown")] == [1, 2, 0]
    assert metadata["tokenizer.ggml.add_bos_token"].data is True
    tokenizer = Tokenizer.from_gguf(metadata)
    check_ranks(tokenizer, by_ranks(tokens[:-50], TEKKEN), 10)
    assert tokenizer.encode("[INST]", parse_special=True) == [1, 3]
    assert (metadata["tokenizer.ggml.pre"].data, notes) == ("tekken", [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qwen.tiktoken", "YQ== 0\nYg= 1\n", r"qwen\.tiktoken, line 2: b'Yg= 1', wanted a token in base64"),
        ("qwen.tiktoken", "YQ== 1\n", "1 tokens, wanted different ones with the ranks from 0 on"),
        ("qwen.tiktoken", "YQ== 0\n", "has no token for the byte 0x00"),
        ("new.tiktoken", "YQ== 0\n", r"does not state how text is split before merging; give .* as --pre NAME"),
        ("tekken.json", "{}", "wanted config, vocab and special_tokens"),
        ("tekken.json", '{"config": {}, "vocab": []}', "not a vocabulary of Mistral's: KeyError: 'default_num"),
        ("rwkv_vocab_v20230424.txt", "1 'a' 1\n2 'b' 2\n", r"line 2: \"2 'b' 2\", wanted an id, a token"),
        ("rwkv_vocab_v20230424.txt", "", "has no token"),
    ],
)
def test_damaged_vocabulary_files_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path, 10)


def test_rwkv(tmp_path: Path) -> None:
    """The longest token counts, also one that ends within a character or begins with a quote."""
    tokens = [*(bytes([i]) for i in range(256)), b"\n\n", b"'s", b"\"'", b"\\n", "é".encode(), "猫".encode()[:2]]
    tokens += [token for token in byte_tokens()[256:] if token not in tokens]
    lines = []
    for id, token in enumerate(tokens, 1):
        try:
            literal = repr(token.decode())
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{id} {literal} {len(token)}\n")
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("".join(lines))
    metadata, _ = read(tmp_path, len(tokens) + 8)
    assert metadata["tokenizer.ggml.model"].data == "rwkv"
    assert metadata["tokenizer.ggml.tokens"].data[:3] == ["<s>", r"\x00", r"\x01"]
    assert metadata["tokenizer.ggml.eot_token_id"].data == 257
    tokenizer = Tokenizer.from_gguf(metadata)
    ids = {token: id for id, token in enumerate(tokens, 1)}
    for line in mixed_lines(LINES // 4):
        rest, wanted = line.encode(), []
        while rest:
            token = next(rest[:length] for length in range(len(rest), 0, -1) if rest[:length] in ids)
            wanted.append(ids[token])
            rest = rest[len(token) :]
        assert tokenizer.encode(line) == wanted, line
        assert tokenizer.decode(wanted) == line


EMBEDDED = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a tokenizer.json that `tokenizers` can read: wanted an object"),
        ("{", "not a tokenizer.json that `tokenizers` can read"),
        ("{}", "not a tokenizer.json that `tokenizers` can read.* --remove tokenizer.huggingface.json"),
        (json.dumps({"model": EMBEDDED | {"unk_token": "x"}}), "the vocabulary has no token for unknown text"),
        (json.dumps({"model": EMBEDDED | {"vocab": {"<unk>": 9}}}), "has the id 9, but there are 2 tokens"),
    ],
)
def test_broken_embedded_tokenizers_are_refused(content: str, message: str) -> None:
    metadata = {
        "tokenizer.ggml.model": string("huggingface"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, ["<unk>", "a"]),
        "tokenizer.huggingface.json": string(content),
    }
    with pytest.raises(InputError, match=message):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": string("bert"), "unknown_token_id": u32(0xFFFFFFFF)}, "WordPiece needs a token for unknown words"),
        ({"model": string("t5"), "unknown_token_id": u32(0xFFFFFFFF)}, "Unigram needs a token for unknown characters"),
        (
            {"model": string("t5"), "scores": array(ValueType.FLOAT32, np.array([0, np.nan], np.float32))},
            "tokenizer.ggml.scores: token 1 has none that is finite",
        ),
        (
            {"model": string("t5"), "precompiled_charsmap": array(ValueType.UINT8, np.array([9, 9], np.uint8))},
            "tokenizer.ggml.precompiled_charsmap: not SentencePiece's map of characters",
        ),
    ],
)
def test_broken_keys_are_refused(keys: dict[str, Value], message: str) -> None:
    known = {"unknown_token_id": u32(0), "tokens": array(ValueType.STRING, ["<unk>", "a"])}
    with pytest.raises(InputError, match=message):
        Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in (known | keys).items()})


def test_maps_of_characters_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    """Of a real map, most changed bytes of the trie are noticed; none may make the library panic."""
    (tmp_path / "spiece.model").write_bytes(unigram_model())
    metadata, _ = read(tmp_path, 1000)
    charsmap = metadata["tokenizer.ggml.precompiled_charsmap"].data
    draw, refused = np.random.default_rng(0), 0
    lines = mixed_lines(200)
    for _ in range(40):
        changed = charsmap.copy()
        changed[draw.integers(0, len(changed), 20)] = draw.integers(0, 256, 20)
        try:
            tokenizer = Tokenizer.from_gguf(
                metadata | {"tokenizer.ggml.precompiled_charsmap": array(ValueType.UINT8, changed)}
            )
        except InputError:
            refused += 1
            continue
        for line in lines:
            tokenizer.encode(line)
    assert refused > 0


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv"])
def test_tokens_that_are_no_text_do_no_harm(kind: str) -> None:
    """A file can hold any bytes as a token; those that are not UTF-8 are kept as lone surrogates."""
    keys = {"model": string(kind), "tokens": array(ValueType.STRING, ["<unk>", "\udcff", "▁a", "a"])}
    keys["unknown_token_id"] = u32(0)
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert tokenizer.encode("a", add_special=False) == [3 if kind == "rwkv" else 2]
    assert tokenizer.piece(1) == b"\xff"
