"""Chooses among the tokenizer files of a checkpoint and loads the `tokenizers` object that they describe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS
from lltool.quant.convert.sentencepiece_model import SentencePieceModel, TokenType, read_sentencepiece
from lltool.quant.convert.unigram import from_sentencepiece
from lltool.quant.convert.vocabulary_added import (
    NamedTokens,
    TokenizerClass,
    add_missing_tokens,
    check_ids,
    forgets_added_tokens,
)
from lltool.quant.convert.vocabulary_table import table
from lltool.quant.convert.wordpiece import apply_settings, from_vocabulary_lines

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_BOM = b"\xef\xbb\xbf"


_END = "<|endoftext|>"
_FAIRSEQ = {
    **{f"{kind}_token": "<s>" for kind in ("bos", "cls")},
    **{f"{kind}_token": "</s>" for kind in ("eos", "sep")},
    **{f"{kind}_token": f"<{kind}>" for kind in ("unk", "pad", "mask")},
}
_ALBERT = {
    **{f"{kind}_token": "[CLS]" for kind in ("bos", "cls")},
    **{f"{kind}_token": "[SEP]" for kind in ("eos", "sep")},
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}
_CLASSES = {
    one.name: one
    for one in (
        TokenizerClass(
            "Qwen2Tokenizer",
            "qwen2",
            True,
            {"unk_token": _END, "eos_token": _END, "pad_token": _END},
            resets_flags=True,
        ),
        TokenizerClass("GPT2Tokenizer", "gpt-2", False, {"unk_token": _END, "bos_token": _END, "eos_token": _END}),
        TokenizerClass(
            "LlamaTokenizer",
            defaults={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
            reads_model=True,
        ),
        TokenizerClass(
            "GemmaTokenizer",
            defaults={
                "unk_token": "<unk>",
                "bos_token": "<bos>",
                "eos_token": "<eos>",
                "pad_token": "<pad>",
                "mask_token": "<mask>",
            },
            reads_model=True,
        ),
        TokenizerClass(
            "T5Tokenizer",
            defaults={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
            reads_model=True,
        ),
        TokenizerClass("XLMRobertaTokenizer", defaults=_FAIRSEQ, reads_model=True),
        TokenizerClass("AlbertTokenizer", defaults=_ALBERT, reads_model=True),
        *(
            TokenizerClass(
                name,
                defaults={f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")},
                is_wordpiece=True,
            )
            for name in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
        ),
    )
}
_CLASS_OF_MODEL = {
    "albert": "AlbertTokenizer",
    "mt5": "T5Tokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}


@dataclass(frozen=True)
class TokenizerSource:
    """A checkpoint's tokenizer, with all files merged as transformers merges them.

    `file` holds the vocabulary. `tokenizer` has all added tokens; `describes_text` tells whether it can also split a
    text, which it cannot if a tokenizer.model or a name from the user is needed for that. `sentencepiece` is the
    tokenizer.model, if the vocabulary comes from it.
    """

    file: Path
    tokenizer: "Tokenizer"
    settings: Mapping[str, Any]
    named: NamedTokens
    sentencepiece: SentencePieceModel | None
    describes_text: bool
    notes: list[str]


def load_source(
    path: Path, config: Mapping[str, Any], pre: str | None = None, *, with_model: bool = True
) -> TokenizerSource:
    """Reads the tokenizer files in folder `path`; `config` is the text model's.

    `pre` names the pre-tokenizer if the files do not. Without `with_model`, a tokenizer.model beside a tokenizer.json
    is not read. Raises InputError for missing or invalid files.
    """
    settings = read_json(path / "tokenizer_config.json", missing={})
    kind = _CLASSES.get(_class_name(path, settings, config), TokenizerClass())
    notes: list[str] = []
    model: SentencePieceModel | None = None
    if (path / "tokenizer.json").exists():
        file = path / "tokenizer.json"
        content = read_json(file)
        tokenizer = _parse_tokenizer(file)
        kind = _class_with_steps(kind, config, tokenizer)
        if forgets_added_tokens(path, settings, content, kind, notes):
            tokenizer = _parse_tokenizer(file, content | {"added_tokens": []})
        else:
            check_ids(file, content, tokenizer, notes)
        if with_model and (path / "tokenizer.model").exists() and _is_spm_bpe(tokenizer):
            model = _matching_model(path / "tokenizer.model", tokenizer, notes)
        _note_other_vocabulary(path, tokenizer, notes)
    elif (path / "vocab.txt").exists() and kind.is_wordpiece:
        file, content = path / "vocab.txt", {}
        tokenizer = from_vocabulary_lines(file, settings, _unknown_of(settings, kind))
    elif (path / "vocab.json").exists() or (path / "merges.txt").exists():
        file, content = path / "vocab.json", {}
        tokenizer = _from_vocabulary_and_merges(path, kind, pre)
    elif found := [path / name for name in _MODEL_FILES if (path / name).exists()]:
        file, content = found[0], {}
        model = read_sentencepiece(file)
        if model.is_unigram:
            tokenizer, model = from_sentencepiece(file, model, kind.name, settings), None
        else:
            tokenizer = _from_sentencepiece(model)
    else:
        raise InputError(
            f"{path}: no tokenizer: wanted tokenizer.json, vocab.json with merges.txt, vocab.txt of "
            "a BertTokenizer, or tokenizer.model, spiece.model or sentencepiece.bpe.model"
        )
    named = add_missing_tokens(path, tokenizer, settings, content, kind, notes)
    if kind.name == "LlamaTokenizer" and not is_byte_level(tokenizer):
        _apply_legacy(path, tokenizer, settings, notes)
    if kind.is_wordpiece and file.name == "tokenizer.json":
        apply_settings(path, tokenizer, settings, notes)
    describes_text = file.name in ("tokenizer.json", "vocab.txt") or (
        file.name == "vocab.json" and kind.pre is not None
    )
    return TokenizerSource(file, tokenizer, settings, named, model, describes_text, notes)


def steps_of(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder of `tokenizers`, flattened into one list."""
    if part is None:
        return []
    state = part if isinstance(part, dict) else json.loads(part.__getstate__())
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if state.get("type") == "Sequence" and inner in state:
            return [step for one in state[inner] for step in steps_of(one)]
    return [state]


def is_byte_level(tokenizer: "Tokenizer") -> bool:
    steps = [*steps_of(tokenizer.pre_tokenizer), *steps_of(tokenizer.decoder)]
    return type(tokenizer.model).__name__ == "BPE" and any(step["type"] == "ByteLevel" for step in steps)


def _is_spm_bpe(tokenizer: "Tokenizer") -> bool:
    return type(tokenizer.model).__name__ == "BPE" and not is_byte_level(tokenizer)


def _class_name(path: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The name of transformers' tokenizer class without "Fast", or "" if it is unknown."""
    model = config.get("model_type")
    stated = ""
    for file, values in (("tokenizer_config.json", settings), ("config.json", config)):
        found = values.get("tokenizer_class")
        if isinstance(found, str):
            stated = stated or found.removesuffix("Fast")
        elif found is not None:
            raise InputError(f"{path / file}: tokenizer_class: found {found!r:.80}, wanted text")
    of_model = _CLASS_OF_MODEL.get(model, "") if isinstance(model, str) else ""
    return of_model if model == "qwen2" else stated or of_model  # transformers ignores what Qwen 2 models state


def _unknown_of(settings: Mapping[str, Any], kind: TokenizerClass) -> str:
    found = settings.get("unk_token", kind.defaults["unk_token"])
    return str(found["content"] if isinstance(found, Mapping) and "content" in found else found)


def _class_with_steps(kind: TokenizerClass, config: Mapping[str, Any], tokenizer: "Tokenizer") -> TokenizerClass:
    """The class if it replaces the steps of a tokenizer.json; otherwise transformers uses the file unchanged."""
    is_llama = kind.name == "LlamaTokenizer"
    if config.get("model_type") == "mistral" or (is_llama and is_byte_level(tokenizer)):
        return TokenizerClass()
    return kind


def _parse_tokenizer(file: Path, content: Mapping[str, Any] | None = None) -> "Tokenizer":
    """The `tokenizers` object of a tokenizer.json, or of changed contents. Raises InputError for an invalid form."""
    from tokenizers import Tokenizer

    data = json.dumps(content).encode() if content else read_bytes(file).removeprefix(_BOM)
    try:
        tokenizer = Tokenizer.from_buffer(data)  # from_file raises a bare Exception
    except ValueError as error:
        raise InputError(f"{file}: not a tokenizer.json that `tokenizers` can read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_vocabulary_and_merges(path: Path, kind: TokenizerClass, pre: str | None) -> "Tokenizer":
    """The tokenizer that transformers makes from vocab.json and merges.txt for a class."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = read_json(path / "vocab.json")
    table(path / "vocab.json", vocab)
    name = kind.pre or pre
    if name is None:
        raise InputError(
            f"{path}: vocab.json and merges.txt do not state how text is split before merging, and the tokenizer's "
            "class does not tell either; wanted Qwen2Tokenizer or GPT2Tokenizer in tokenizer_config.json, a "
            "tokenizer.json, or the name of the pre-tokenizer as --pre NAME"
        )
    if name not in PRE_TOKENIZERS:
        raise InputError(f"--pre {name}: unknown; this version knows {', '.join(PRE_TOKENIZERS)}")
    merges = _read_merges(path / "merges.txt", vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=PRE_TOKENIZERS[name].ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[name].patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if kind.composes:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _read_merges(file: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs of a merges.txt. Raises InputError, naming the line, for a pair that does not form a token."""
    try:
        text = read_bytes(file).removeprefix(_BOM).decode()
    except FileNotFoundError:
        raise InputError(f"{file}: missing; vocab.json needs it, unless there is a tokenizer.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from None
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (line.startswith("#version") and number == 1):
            continue
        left, space, right = line.partition(" ")
        if not space or not all(part in vocab for part in (left, right, left + right)):
            raise InputError(f"{file}, line {number}: {line!r:.80}, wanted two tokens that form a third of vocab.json")
        merges.append((left, right))
    return merges


def _from_sentencepiece(model: SentencePieceModel) -> "Tokenizer":
    """A tokenizer with the model's pieces, whose control and user-defined tokens are added tokens."""
    from tokenizers import AddedToken, Tokenizer, models

    tokenizer = Tokenizer(models.BPE({_utf8(piece): id for id, piece in enumerate(model.pieces)}, []))
    types = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}
    tokenizer.add_tokens(
        [
            AddedToken(_utf8(piece), normalized=False, special=types[TokenType(type)])
            for piece, type in zip(model.pieces, model.types, strict=True)
            if type in types
        ]
    )
    return tokenizer


def _utf8(piece: str) -> str:
    return piece.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _matching_model(file: Path, tokenizer: "Tokenizer", notes: list[str]) -> SentencePieceModel | None:
    """The tokenizer.model beside a tokenizer.json, needed for its scores; None if its tokens differ."""
    model = read_sentencepiece(file)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    own = (_utf8(piece) for piece in model.pieces)
    strange = [piece for id, piece in enumerate(own) if id not in (ids.get(piece), ids.get(piece.replace("▁", " ")))]
    if strange or tokenizer.get_vocab_size(with_added_tokens=False) > len(model.pieces):
        example = f", such as {strange[0]!r:.60}" if strange else ""
        notes.append(f"{file}: its tokens differ from tokenizer.json's{example}; tokenizer.json is used")
        return None
    return model


def _note_other_vocabulary(path: Path, tokenizer: "Tokenizer", notes: list[str]) -> None:
    """Notes differences between vocab.json, which older libraries read, and tokenizer.json."""
    other = read_json(path / "vocab.json", missing={})
    ids = tokenizer.get_vocab(with_added_tokens=True) if other else {}
    if strange := [token for token, id in other.items() if ids.get(token) != id]:
        notes.append(
            f"{path / 'vocab.json'}: {len(strange)} tokens have other ids in tokenizer.json, such as "
            f"{strange[0]!r:.60}; tokenizer.json is used"
        )


def _apply_legacy(path: Path, tokenizer: "Tokenizer", settings: Mapping[str, Any], notes: list[str]) -> None:
    """Sets the space before a text according to `legacy` and `add_prefix_space` of a LlamaTokenizer, if stated."""
    from tokenizers import pre_tokenizers

    stated: dict[str, bool | None] = {}
    for key in ("legacy", "add_prefix_space"):
        found = settings.get(key)
        if found is not None and type(found) is not bool:
            raise InputError(f"{path / 'tokenizer_config.json'}: {key}: found {found!r:.80}, wanted true or false")
        stated[key] = found
    if stated["legacy"] is None and stated["add_prefix_space"] is None:
        return
    has_prefix = stated["add_prefix_space"] is not False
    scheme = "never" if not has_prefix else "always" if stated["legacy"] else "first"
    before = steps_of(tokenizer.normalizer) + steps_of(tokenizer.pre_tokenizer)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    if before and before != steps_of(tokenizer.pre_tokenizer):
        words = ", ".join(f"{key} {str(value).lower()}" for key, value in stated.items() if value is not None)
        notes.append(
            f"{path / 'tokenizer_config.json'}: LlamaTokenizer with {words} puts spaces before texts differently from "
            "tokenizer.json; the former is used, as transformers 5 does"
        )
