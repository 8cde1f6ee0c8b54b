"""Added and special tokens of checkpoints: ids as transformers gives them, whichever files name the tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.text.tokenizer import Tokenizer
from lltool.engine.text.tokenizer_check import compare_tokenizers
from lltool.gguf.errors import InputError
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import AddedTokenFlag
from lltool.quant.convert.vocabulary import Vocabulary, read_vocabulary
from lltool.quant.convert.vocabulary_files import StoredVocabulary
from tests.tiny_tokenizers import TOKENIZERS

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
AROUND = ("{0}", "{0}user", "a{0}b", "a {0} b", "a  {0}  b\n", "{0}{0} bar", "{0} the", "\n\n{0}.")
TEXTS = (
    *("the dog and the sea", " bar", "foobar bar,bars", "x bar", "  two  spaces ", "", " "),
    *(around.format(text) for around in AROUND for text in ("<turn>", "bar", "</s>")),
)


@pytest.fixture(scope="module", autouse=True)
def _import_transformers() -> None:
    """Imports transformers, which takes seconds, before the time of any test is measured."""
    import transformers  # noqa: F401


def token(content: str, **flags: Any) -> dict[str, Any]:
    return {"content": content, **FLAGS, **flags}


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer of 370 tokens and four added ones, and the config that transformers requires."""
    TOKENIZERS["qwen2"](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def read(folder: Path, rows: int = 400, **config: Any) -> Vocabulary:
    return read_vocabulary(folder, config, rows)


def assert_same_ids(folder: Path, rows: int = 400) -> Vocabulary:
    """Compares the ids from the GGUF keys with AutoTokenizer's."""
    import transformers

    config = json.loads((folder / "config.json").read_text())
    wanted = transformers.AutoTokenizer.from_pretrained(str(folder))
    vocabulary = read_vocabulary(folder, config, rows)
    tokenizer = Tokenizer.from_gguf(vocabulary.metadata())
    for text in TEXTS:
        assert tokenizer.encode(text, parse_special=True) == wanted(text)["input_ids"], text
    assert tokenizer.eos == wanted.eos_token_id
    return vocabulary


def test_added_tokens_of_every_file(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"374": token("<turn>")}))
    vocabulary = assert_same_ids(folder)
    assert vocabulary.tokens[374] == "<turn>"
    assert vocabulary.types[374] == TokenType.CONTROL
    edit(folder / "tokenizer_config.json", lambda c: c.pop("added_tokens_decoder"))
    (folder / "added_tokens.json").write_text('{"<turn>": 374}')
    assert assert_same_ids(folder).types[374] == TokenType.USER_DEFINED
    (folder / "added_tokens.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<turn>", "bar"]}')
    assert assert_same_ids(folder).tokens[374:376] == ["<turn>", "bar"]
    (folder / "special_tokens_map.json").unlink()
    edit(folder / "tokenizer_config.json", lambda c: c.update(extra_special_tokens=["bar"], image_token="<turn>"))
    assert assert_same_ids(folder).tokens[374:376] == ["<turn>", "bar"]


def test_files_that_disagree(folder: Path) -> None:
    """In transformers, special_tokens_map.json takes precedence unless there is an added_tokens_decoder."""
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (folder / "added_tokens.json").write_text('{"<turn>": 390}')
    notes = "\n".join(assert_same_ids(folder).notes)
    assert "special_tokens_map.json: eos_token is '<|endoftext|>', but '<|im_end|>' in tokenizer_config.json" in notes
    assert "added_tokens.json: gives '<turn>' the id 390, not 374; the latter is used, as transformers does" in notes
    edit(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"374": token("bar", lstrip=True)}))
    vocabulary = assert_same_ids(folder)
    assert vocabulary.tokens[374] == "bar"
    assert vocabulary.keys["eos_token_id"].data == 372
    notes = "\n".join(vocabulary.notes)
    assert (
        "added_tokens.json: not read, because tokenizer_config.json has added_tokens_decoder; "
        "only the former has '<turn>'" in notes
    )
    assert "special_tokens_map.json: eos_token is '<|endoftext|>', not read" in notes


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_flags_are_kept(flag: str, folder: Path) -> None:
    for id, content in ((374, "<turn>"), (375, "bar")):
        row = {"id": id, **token(content, special=content == "<turn>"), flag: True}
        edit(folder / "tokenizer.json", lambda c, row=row: c["added_tokens"].append(row))
    vocabulary = assert_same_ids(folder)
    assert vocabulary.added[374] == AddedTokenFlag[flag.upper()]
    assert any("flags that readers of GGUF files other than lltool" in note for note in vocabulary.notes) == (
        flag != "normalized"
    )
    again = folder / "exported"
    again.mkdir()
    for name, data in StoredVocabulary(vocabulary.metadata()).files(512).items():
        (again / name).write_bytes(data)
    exported = read_vocabulary(again, {}, 400).added
    assert {exported[374], exported[375]} == {AddedTokenFlag[flag.upper()]}


def test_vocabulary_and_merges(folder: Path) -> None:
    """Older libraries save tokenizers as these two files."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    with pytest.raises(InputError, match=r"do not state how text is split before merging, .* as --pre NAME"):
        read(folder)
    assert read_vocabulary(folder, {}, 400, "qwen2").keys["pre"].data == "qwen2"
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="Qwen2Tokenizer"))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    vocabulary = assert_same_ids(folder)
    assert vocabulary.keys["pre"].data == "qwen2"
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(InputError, match=r"merges\.txt, line 2: 'a b c', wanted two tokens that form a third of vocab"):
        read(folder, model_type="qwen2")
    (folder / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt: missing; vocab\.json needs it"):
        read(folder, model_type="qwen2")


@pytest.mark.parametrize(
    "normalizers", [[], [{"type": "NFC"}], [{"type": "Sequence", "normalizers": [{"type": "NFC"}]}]]
)
def test_normalizers_in_sequences(normalizers: list[Any], folder: Path) -> None:
    sequence = {"type": "Sequence", "normalizers": normalizers}
    edit(folder / "tokenizer.json", lambda c: c.update(normalizer=sequence))
    assert any("NFC" in note for note in assert_same_ids(folder).notes) == bool(normalizers)


METASPACES = (
    {"add_prefix_space": True},
    {"add_prefix_space": True, "prepend_scheme": "first", "split": False},
    {"prepend_scheme": "always", "split": False},
    {"add_prefix_space": False, "prepend_scheme": "never"},
)


@pytest.mark.parametrize("metaspace", METASPACES)
def test_metaspaces_old_and_new(metaspace: dict[str, Any], tmp_path: Path) -> None:
    TOKENIZERS["spm-json"](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    step = {"type": "Metaspace", "replacement": "▁", **metaspace}
    edit(tmp_path / "tokenizer.json", lambda c: c.update(normalizer=None, pre_tokenizer=step))
    edit(tmp_path / "tokenizer.json", lambda c: c["added_tokens"].append({"id": 370, **token("<turn>")}))
    vocabulary = assert_same_ids(tmp_path)
    assert vocabulary.space_prefix == metaspace.get("prepend_scheme", "always")


@pytest.mark.parametrize("legacy", [True, False])
def test_stated_legacy_of_a_llama_tokenizer(legacy: bool, tmp_path: Path) -> None:
    TOKENIZERS["spm-json"](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    edit(tmp_path / "tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer", legacy=legacy))
    edit(tmp_path / "tokenizer.json", lambda c: c["added_tokens"].append({"id": 370, **token("<turn>")}))
    vocabulary = assert_same_ids(tmp_path)
    assert vocabulary.space_prefix == ("always" if legacy else "first")
    assert any("LlamaTokenizer with legacy" in note for note in vocabulary.notes)


def test_more_tokens_than_rows(folder: Path) -> None:
    pad = {"id": 374, **token("[PAD]")}
    edit(folder / "tokenizer.json", lambda c: c["added_tokens"].append(pad))
    edit(folder / "tokenizer_config.json", lambda c: c.update(pad_token="[PAD]"))
    vocabulary = read(folder, rows=374)
    assert len(vocabulary.tokens) == 374
    assert "padding_token_id" not in vocabulary.keys
    assert f"{folder}: the embedding has 374 rows; unused tokens are left out: '[PAD]'" in vocabulary.notes
    with pytest.raises(
        InputError, match=r"tokenizer of 375 tokens, but the embedding has 373 rows; '<think>' would have"
    ):
        read(folder, rows=373)


@pytest.mark.parametrize(
    ("generation", "config", "ends", "turn"),
    [
        ({"eos_token_id": [372, 370]}, {}, {370, 372}, 370),
        ({"eos_token_id": 370}, {}, {370, 372}, 370),
        ({"eos_token_id": ["370", 371, 372]}, {}, {370, 371, 372}, 370),
        ({"eos_token_id": None}, {"eos_token_id": [370]}, {370, 372}, 370),
        ({}, {"eos_token_id": 370}, {370, 372}, 370),
    ],
)
def test_ends_of_every_place(
    generation: dict[str, Any], config: dict[str, Any], ends: set[int], turn: int, folder: Path
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    vocabulary = read(folder, **config)
    assert vocabulary.keys["eot_token_id"].data == turn
    assert Tokenizer.from_gguf(vocabulary.metadata()).end_of_generation == ends
    assert StoredVocabulary(vocabulary.metadata()).end_ids()[0] == 372


@pytest.mark.parametrize("wrong", [-1, 400, 2_000_000_000, 1.0, True, "x", {"id": 1}])
def test_wrong_end_ids_are_noted_and_ignored(wrong: Any, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [wrong, 370]}))
    vocabulary = read(folder)
    assert vocabulary.keys["eot_token_id"].data == 370
    assert any("eos_token_id: found" in note for note in vocabulary.notes) == (wrong != -1)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|u|>{{ m.role }}\n{{ m.content }}<turn>\n{% endfor %}",
        "{% for m in messages %}{{ '<|u|>' + m['role'] + m['content'] + '<turn>' }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m['content'] + '<|u|>' }}"
        "{% elif m.role == 'assistant' %}{{ m['content'] | trim + '<turn>' }}{% endif %}{% endfor %}",
    ],
)
def test_end_that_only_the_chat_template_writes(template: str, folder: Path) -> None:
    rows = [{"id": 374, **token("<turn>")}, {"id": 375, **token("<|u|>")}]
    edit(folder / "tokenizer.json", lambda c: c["added_tokens"].extend(rows))
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    assert read(folder).keys["eot_token_id"].data == 374


def test_the_post_processor_says_what_comes_first(folder: Path) -> None:
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers import processors

    path = folder / "tokenizer.json"
    tokenizer = HuggingFace.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 371)]
    )
    tokenizer.save(str(path))
    vocabulary = assert_same_ids(folder)
    assert vocabulary.keys["bos_token_id"].data == 371
    assert any("add_bos_token is false, but tokenizer.json adds one" in note for note in vocabulary.notes)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"-1": token("x")}},
        "added_tokens_decoder: id '-1', wanted 0 to",
    ),
    ("tokenizer_config.json", {"added_tokens_decoder": {"2000000000": token("x")}}, "id '2000000000', wanted 0 to"),
    (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"374": "x"}},
        "added_tokens_decoder: 374: found 'x', wanted an",
    ),
    (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"374": token("x", lstrip=1)}},
        "lstrip: found 1, wanted true or",
    ),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, r"added_tokens_decoder: found \[1\], wanted an object"),
    ("tokenizer_config.json", {"bos_token": 5}, "bos_token: found 5, wanted text or an object"),
    ("tokenizer_config.json", {"additional_special_tokens": 5}, "additional_special_tokens: found 5, wanted a list"),
    ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token: found 'yes', wanted true or false"),
    ("tokenizer_config.json", {"tokenizer_class": 5}, "tokenizer_class: found 5, wanted text"),
    ("tokenizer_config.json", {"chat_template": 5}, "chat_template: found 5, wanted text or a list"),
    ("added_tokens.json", {"x": -1}, "token 'x' has the id -1, wanted 0 to"),
    ("added_tokens.json", {"x": None}, "token 'x' has the id None, wanted 0 to"),
    ("added_tokens.json", {"x": 2_000_000_000}, "token 'x' has the id 2000000000, wanted 0 to"),
    ("added_tokens.json", {"x": 374.0}, "token 'x' has the id 374.0, wanted 0 to"),
    ("added_tokens.json", {"x": True}, "token 'x' has the id True, wanted 0 to"),
    ("special_tokens_map.json", {"eos_token": [1]}, r"eos_token: found \[1\], wanted text or an object"),
    ("tokenizer.json", {"added_tokens": None}, "not a tokenizer.json that `tokenizers` can read"),
    ("tokenizer.json", {"model": None}, "not a tokenizer.json that `tokenizers` can read"),
    ("tokenizer.json", {"added_tokens": [{"id": -1, **token("x")}]}, "not a tokenizer.json that `tokenizers` can read"),
    ("tokenizer.json", {"normalizer": 5}, "not a tokenizer.json that `tokenizers` can read"),
]


@pytest.mark.parametrize(("file", "change", "message"), WRONG)
def test_values_of_wrong_types_are_refused(file: str, change: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / file, lambda content: content.update(change))
    with pytest.raises(InputError, match=message) as error:
        read(folder)
    assert str(folder / file) in str(error.value)


def test_a_check_around_added_tokens(folder: Path) -> None:
    """Two tokenizers that differ only next to an added token."""
    row = {"id": 374, **token("<turn>", rstrip=True)}
    edit(folder / "tokenizer.json", lambda c: c["added_tokens"].append(row))
    metadata = read(folder).metadata()
    assert compare_tokenizers(Tokenizer.from_gguf(metadata), folder / "tokenizer.json") is None
    edit(folder / "tokenizer.json", lambda c: c["added_tokens"][-1].update(rstrip=False))
    difference = compare_tokenizers(Tokenizer.from_gguf(metadata), folder / "tokenizer.json")
    assert difference is not None
    assert "<turn>" in difference
