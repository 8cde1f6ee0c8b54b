"""Tokenizers against llama.cpp's expected ids, Hugging Face's tokenizers, and the rules for special tokens."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.text import tokenizer_bpe, tokenizer_spm
from lltool.engine.text.tokenizer import StreamDecoder, Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, boolean, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.string_array import StringArray
from lltool.quant.convert.hard_texts import TEXTS
from lltool.quant.convert.sentencepiece_model import TokenType
from tests.conftest import GoldenFile

VOCABULARIES = ("llama-bpe", "llama-spm", "qwen2", "gpt-2", "phi-3", "falcon", "starcoder", "deepseek-llm")


@pytest.mark.parametrize("short", [tokenizer_bpe._SHORT_TEXT, -1], ids=["table", "library"])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_golden_ids_and_back(golden_file: GoldenFile, name: str, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_bpe, "_SHORT_TEXT", short)
    with open_gguf(golden_file(f"vocab/ggml-vocab-{name}.gguf")) as file:
        check_golden_ids(Tokenizer.from_gguf(file.metadata), golden_file, name)


def check_golden_ids(tokenizer: Tokenizer, golden_file: GoldenFile, name: str) -> None:
    texts = golden_file(f"vocab/ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = golden_file(f"vocab/ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(texts) == len(lines) == 47
    for text, line in zip(texts, lines, strict=True):
        ids = [int(id) for id in line.split()]
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text


def test_golden_ids_of_a_real_model(golden_file: GoldenFile, real_model: Callable[[str], Path]) -> None:
    """Qwen2.5 has the vocabulary of Qwen2, whose file is too large for the repository."""
    with open_gguf(real_model("qwen25coder-0.5b-q4_k_m")) as file:
        check_golden_ids(Tokenizer.from_gguf(file.metadata), golden_file, "qwen2")


@pytest.fixture(scope="module")
def smollm2(real_model: Callable[[str], Path]) -> Tokenizer:
    with open_gguf(real_model("smollm2-q4_1")) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="module")
def gemma3(real_model: Callable[[str], Path]) -> Tokenizer:
    with open_gguf(real_model("gemma3-270m-q4_k_m")) as file:
        return Tokenizer.from_gguf(file.metadata)


def test_control_tokens_are_found_only_when_asked_for(smollm2: Tokenizer) -> None:
    end = smollm2.encode("<|im_end|>", parse_special=True)
    assert end == [2]
    assert smollm2.encode("<|im_end|>") != end
    assert smollm2.decode(smollm2.encode("<|im_end|>")) == "<|im_end|>"
    assert smollm2.encode("a<|im_start|><|im_end|>\nb", parse_special=True) == [
        *smollm2.encode("a"),
        1,
        2,
        *smollm2.encode("\nb"),
    ]
    assert smollm2.decode([1, *smollm2.encode("hi"), 2]) == "hi"
    assert smollm2.decode([1, *smollm2.encode("hi"), 2], special=True) == "<|im_start|>hi<|im_end|>"


def test_smollm2_says_what_begins_and_ends_a_text(smollm2: Tokenizer) -> None:
    assert (smollm2.bos, smollm2.eos, smollm2.add_bos, smollm2.size) == (1, 2, False, 49152)
    assert smollm2.end_of_generation == {0, 2, 4}  # <|endoftext|>, <|im_end|> and, as in llama.cpp, <reponame>
    assert smollm2.encode("") == []


def test_gemma3_finds_runs_of_white_space_longest_first(gemma3: Tokenizer) -> None:
    assert (gemma3.bos, gemma3.eos, gemma3.add_bos) == (2, 1, True)
    assert {gemma3.tokens[id] for id in gemma3.end_of_generation} == {"<eos>", "<end_of_turn>"}
    assert gemma3.encode("") == [2]
    newlines = gemma3.encode("\n" * 40, add_special=False)
    assert [gemma3.tokens[id] for id in newlines] == ["\n" * 31, "\n" * 9]
    assert [gemma3.piece(id) for id in gemma3.encode("a  b", add_special=False)] == [b"a", b"  ", b"b"]


@settings(deadline=None, max_examples=300)
@given(text=st.text() | st.text("aeinorst THE.,'1 \n\t_éß"))
def test_prompts_and_long_texts_are_merged_alike(smollm2: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        short = smollm2.encode(text)
        patch.setattr(tokenizer_bpe, "_SHORT_TEXT", -1)
        assert smollm2.encode(text) == short


def test_a_word_without_end_is_merged_by_the_library(smollm2: Tokenizer) -> None:
    assert smollm2.decode(smollm2.encode("ab" * 2000)) == "ab" * 2000
    assert "_library" in vars(smollm2.kind.encode_plain.__self__)  # type: ignore[attr-defined]


def test_every_text_comes_back(smollm2: Tokenizer, gemma3: Tokenizer) -> None:
    for text in TEXTS:
        assert smollm2.decode(smollm2.encode(text)) == text
        assert gemma3.decode(gemma3.encode(text)) == text.replace("▁", " ")  # SentencePiece's space


@pytest.mark.parametrize("texts", [[b"a", b"\xc3\xa9"], [b"b\0c", b"x"], [b"", b"x"], [b"x", b"x"], [b"\xc3", b"\xa9"]])
def test_texts_in_a_file_are_those_of_a_list(texts: list[bytes]) -> None:
    data = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    strings = StringArray.scan(memoryview(data), 0, len(texts))
    found = tokenizer_spm._unique_texts(strings)
    assert found == tokenizer_spm._unique_texts(list(strings))
    assert (found == texts) == (texts[0] == b"a")


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back_from_bytes(gpt2_tokenizer: Tokenizer, text: str) -> None:
    assert gpt2_tokenizer.decode(gpt2_tokenizer.encode(text)) == text


# A vocabulary small enough to work out by hand: all bytes, a few merges, a user-defined and a control token.
MERGES = ["a b", "ab c", "Ġ a", "b c", "l l", "e l"]
ALPHABET = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def gpt2_metadata(**changes: Value | None) -> dict[str, Value]:
    others = [byte for byte in range(256) if byte not in ALPHABET]
    char = {byte: chr(byte) for byte in ALPHABET} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    merges = MERGES
    tokens = [
        *(char[byte] for byte in range(256)),
        *(merge.replace(" ", "") for merge in merges),
        "<tool>",
        "<|im_end|>",
    ]
    metadata: dict[str, Value | None] = {
        "model": string("gpt2"),
        "pre": string("gpt-2"),
        "tokens": array(ValueType.STRING, tokens),
        "token_type": array(
            ValueType.INT32, np.array([TokenType.NORMAL] * 262 + [TokenType.USER_DEFINED, TokenType.CONTROL], np.int32)
        ),
        "merges": array(ValueType.STRING, merges),
    }
    metadata |= changes
    return {f"tokenizer.ggml.{name}": value for name, value in metadata.items() if value is not None}


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(gpt2_metadata())


AB, ABC, SPACE_A, BC, LL, EL, TOOL, END = range(256, 264)


def test_merges_apply_in_their_order(gpt2_tokenizer: Tokenizer) -> None:
    assert gpt2_tokenizer.encode("abc") == [ABC]
    assert gpt2_tokenizer.encode("bc") == [BC]
    assert gpt2_tokenizer.encode("xab ac abc") == [ord("x"), AB, SPACE_A, ord("c"), ord(" "), ABC]


def test_user_defined_tokens_are_always_found(gpt2_tokenizer: Tokenizer) -> None:
    assert gpt2_tokenizer.encode("ab<tool>c<|im_end|>", parse_special=True) == [AB, TOOL, ord("c"), END]
    assert gpt2_tokenizer.encode("ab<tool>c<|im_end|>")[:3] == [AB, TOOL, ord("c")]
    assert END not in gpt2_tokenizer.encode("<|im_end|>")


def test_begin_and_end_tokens_follow_the_flags() -> None:
    keys = {"bos_token_id": u32(END), "eos_token_id": u32(TOOL)}
    assert Tokenizer.from_gguf(gpt2_metadata(**keys)).encode("ab") == [AB]
    both = Tokenizer.from_gguf(gpt2_metadata(**keys, add_bos_token=boolean(True), add_eos_token=boolean(True)))
    assert both.encode("ab") == [END, AB, TOOL]
    assert both.encode("ab", add_special=False) == [AB]


def test_fill_in_middle_tokens_are_found_by_key_and_by_name() -> None:
    """The separators end a text that was filled in; beside <|return|> and <|call|>, <|end|> ends none."""
    texts = ["<|fim_prefix|>", "<fim_suffix>", "<|fim_middle|>", "<|file_sep|>", "<|return|>", "<|call|>", "<|end|>"]
    known, size = gpt2_metadata(), 264
    tokens = array(ValueType.STRING, [*known["tokenizer.ggml.tokens"].data, *texts])
    types = [*known["tokenizer.ggml.token_type"].data, *[TokenType.CONTROL] * len(texts)]
    kinds = array(ValueType.INT32, np.array(types, np.int32))
    tokenizer = Tokenizer.from_gguf(gpt2_metadata(tokens=tokens, token_type=kinds, middle_token_id=u32(5)))
    assert tokenizer.fill_in_middle == {"pre": size, "suf": size + 1, "mid": 5, "sep": size + 3}
    assert {size + 3, size + 4, size + 5} <= tokenizer.end_of_generation
    assert size + 6 not in tokenizer.end_of_generation


def test_llama3_adds_a_begin_token_and_takes_whole_tokens_before_merging() -> None:
    tokens = [*gpt2_metadata()["tokenizer.ggml.tokens"].data, "xyz"]
    types = np.array([TokenType.NORMAL] * 262 + [TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.NORMAL], np.int32)
    changes = {"tokens": array(ValueType.STRING, tokens), "token_type": array(ValueType.INT32, types)}
    llama3 = Tokenizer.from_gguf(gpt2_metadata(**changes, pre=string("llama-bpe"), bos_token_id=u32(END)))
    assert llama3.encode("xyz") == [END, END + 1]
    assert Tokenizer.from_gguf(gpt2_metadata(**changes)).encode("xyz") == [ord("x"), ord("y"), ord("z")]


def spm_metadata(pieces: list[tuple[str, float, int]], **changes: Value) -> dict[str, Value]:
    texts, scores, types = zip(*pieces, strict=True)
    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, list(texts)),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, np.array(scores, np.float32)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.array(types, np.int32)),
        **{f"tokenizer.ggml.{name}": value for name, value in changes.items()},
    }


SPM = [
    ("<unk>", 0.0, TokenType.UNKNOWN),
    ("<s>", 0.0, TokenType.CONTROL),
    ("</s>", 0.0, TokenType.CONTROL),
    *((f"<0x{byte:02X}>", 0.0, TokenType.BYTE) for byte in range(256)),
    ("▁", -9.0, TokenType.NORMAL),
    ("a", -8.0, TokenType.NORMAL),
    ("b", -7.0, TokenType.NORMAL),
    ("ab", -2.0, TokenType.NORMAL),
    ("▁a", -1.0, TokenType.NORMAL),
    ("ba", -3.0, TokenType.NORMAL),
]
SPACE, A, B, S_AB, S_SPACE_A, S_BA = range(259, 265)


def test_spm_merges_the_best_score_first_and_prefixes_a_space() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(SPM))
    assert tokenizer.encode("ab") == [1, S_SPACE_A, B]  # "▁a" scores above "ab"
    assert tokenizer.encode("bab") == [1, SPACE, B, S_AB]
    assert tokenizer.encode("é", add_special=False) == [SPACE, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.encode("b</s>a", parse_special=True) == [1, SPACE, B, 2, S_SPACE_A]  # a space after </s> as well
    assert tokenizer.decode([1, S_SPACE_A, B]) == "ab"
    without = Tokenizer.from_gguf(spm_metadata(SPM, add_space_prefix=boolean(False)))
    assert without.encode("ab") == [1, S_AB]
    assert without.encode(" ab") == [1, S_SPACE_A, B]


def test_spm_without_bytes_gives_the_unknown_token() -> None:
    pieces = [piece for piece in SPM if piece[2] != TokenType.BYTE]
    tokenizer = Tokenizer.from_gguf(spm_metadata(pieces, add_space_prefix=boolean(False), unknown_token_id=u32(0)))
    assert tokenizer.encode("aéa") == [1, 4, 0, 4]


def test_spm_takes_vocabularies_that_sentencepiece_would_not() -> None:
    pieces = [
        *SPM,
        ("", 0.0, TokenType.NORMAL),
        ("ab", -2.0, TokenType.NORMAL),
        ("a\0", 0.0, TokenType.NORMAL),
        ("\udcff", 0.0, TokenType.NORMAL),
    ]
    tokenizer = Tokenizer.from_gguf(spm_metadata(pieces, add_space_prefix=boolean(False)))
    assert tokenizer.encode("ab", add_special=False) == [266]  # of equal texts the last id, as in llama.cpp
    assert tokenizer.piece(265) == b""
    assert tokenizer.piece(268) == b"\xff"


def test_lone_surrogates_become_replacement_characters(gpt2_tokenizer: Tokenizer) -> None:
    assert gpt2_tokenizer.decode(gpt2_tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert gpt2_tokenizer.decode(gpt2_tokenizer.encode("\ud83d\ude00")) == "😀"


def test_special_tokens_that_are_no_utf8_do_no_harm() -> None:
    metadata = gpt2_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"].data, "<\udcff>"]
    types = [*metadata["tokenizer.ggml.token_type"].data, TokenType.CONTROL]
    metadata["tokenizer.ggml.tokens"] = array(ValueType.STRING, tokens)
    metadata["tokenizer.ggml.token_type"] = array(ValueType.INT32, np.array(types, np.int32))
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("ab<|im_end|>", add_special=False, parse_special=True) == [AB, END]
    assert tokenizer.piece(len(tokens) - 1) == b"<\xff>"


def test_stream_holds_back_incomplete_characters(gpt2_tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(gpt2_tokenizer)
    assert [decoder.push(id) for id in gpt2_tokenizer.encode("é€😀!")] == ["", "é", "", "", "€", "", "", "", "😀", "!"]
    assert decoder.flush() == ""
    assert decoder.push(0xE2) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(ord("x")) == "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"model": string("plamo2")}, "'plamo2', wanted one of gpt2, llama, gemma4, bert, t5, rwkv"),
        ({"model": u32(3)}, "found UINT32, wanted a string"),
        ({"pre": string("new-pre")}, "pre-tokenizer 'new-pre' is not supported"),
        ({"tokens": None}, "tokens: the array of strings is missing"),
        ({"merges": None}, "merges: the array of strings is missing"),
        ({"merges": array(ValueType.STRING, ["a b", "a z"])}, r"merges\[1\]: 'a z': 'az' is not in"),
        ({"merges": array(ValueType.STRING, ["ab"])}, r"merges\[0\]: 'ab': '' is not in"),
        ({"merges": array(ValueType.STRING, ["a b c", "a"])}, r"merges\[0\]: 'a b c': 'b c' is not in"),
        ({"token_type": array(ValueType.INT32, np.ones(3, np.int32))}, "3 values for 264 tokens"),
        ({"pre": u32(1)}, "pre: found UINT32, wanted a string"),
        (
            {"token_type": array(ValueType.FLOAT32, np.ones(264, np.float32))},
            "found an array of FLOAT32, wanted an array of numbers",
        ),
        ({"tokens": string("abc")}, "tokens: found STRING, wanted an array of strings"),
        ({"tokens": array(ValueType.INT32, np.ones(3, np.int32))}, "found an array of INT32, wanted an array of str"),
    ],
)
def test_broken_metadata_is_refused(changes: dict[str, Value | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tokenizer.from_gguf(gpt2_metadata(**changes))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"eos_token_id": u32(264)}, "tokenizer.ggml.eos_token_id is 264, but there are 264 tokens: it is ignored"),
        ({"eot_token_id": Value(ValueType.INT32, -2)}, "eot_token_id is -2, but there are 264 tokens: it is ignored"),
        ({"eot_token_id": Value(ValueType.INT32, -1)}, ""),  # how some files say that there is none
        ({"eot_token_id": u32(0xFFFFFFFF)}, ""),
        ({"eot_token_id": array(ValueType.UINT32, np.arange(2))}, "eot_token_id is of type ARRAY, wanted a token id"),
        ({"eot_token_id": Value(ValueType.FLOAT32, 1.5)}, "eot_token_id is of type FLOAT32, wanted a token id"),
        ({"add_bos_token": array(ValueType.BOOL, np.ones(2, bool))}, "add_bos_token is of type ARRAY, wanted a bool"),
        ({"add_bos_token": string("yes")}, "add_bos_token is of type STRING, wanted a bool: it is ignored"),
    ],
)
def test_optional_metadata_that_is_wrong_is_logged_and_ignored(
    changes: dict[str, Value | None], note: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = next(iter(changes))
    tokenizer = Tokenizer.from_gguf(gpt2_metadata(**changes))
    without = Tokenizer.from_gguf(gpt2_metadata(**{name: None}))
    assert note in caplog.text
    assert bool(note) == bool(caplog.text)
    for attribute in ("bos", "eos", "eot", "add_bos", "end_of_generation"):
        assert getattr(tokenizer, attribute) == getattr(without, attribute)


def test_of_equal_merges_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in llama.cpp, for texts of all lengths: "ab" is merged before "bc" though it is listed again behind it."""
    tokens = ["a", "b", "c", "ab", "bc"]
    load = tokenizer_bpe.load_bpe(tokens, ["a b", "b c", "a b"], tokenizer_bpe.PRE_TOKENIZERS["gpt-2"])
    assert load(["abc"]) == [[3, 2]]
    monkeypatch.setattr(tokenizer_bpe, "_SHORT_TEXT", -1)
    assert load(["abc"]) == [[3, 2]]


def test_missing_pre_tokenizer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.from_gguf(gpt2_metadata(pre=None))
    assert "tokenizer.ggml.pre is missing" in caplog.text
    assert tokenizer.encode("abc") == [ABC]


def test_token_ids_out_of_range_are_refused(gpt2_tokenizer: Tokenizer) -> None:
    for id in (-1, 264):
        with pytest.raises(InputError, match="the vocabulary has 264 tokens"):
            gpt2_tokenizer.piece(id)


def hugging_face_json(merges: list[str]) -> dict[str, Any]:
    tokens = gpt2_metadata()["tokenizer.ggml.tokens"].data[:262]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }


def test_check_against_hugging_face_names_the_first_difference(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer.from_gguf(gpt2_metadata(pre=string("smollm")))
    path.write_text(json.dumps(hugging_face_json(MERGES)))
    assert compare_tokenizers(tokenizer, path) is None
    path.write_text(json.dumps(hugging_face_json(MERGES[::-1])))
    wanted = [*b"H", EL, *b"lo world"]
    assert compare_tokenizers(tokenizer, path) == (
        f"{path}: 'Hello world' gives {wanted}, the converted tokenizer gives {[*b'He', LL, *b'o world']}"
    )


def test_a_begin_token_that_is_written_is_not_added(gemma3: Tokenizer) -> None:
    hello = gemma3.encode("Hello")
    assert hello[0] == gemma3.bos
    assert gemma3.encode("<bos>Hello", parse_special=True) == hello
    assert gemma3.encode("<bos>Hello")[0] == gemma3.bos != gemma3.encode("<bos>Hello")[1]
    assert gemma3.with_begin([]) == [gemma3.bos]
