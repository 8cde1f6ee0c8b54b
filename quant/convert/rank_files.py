"""Vocabularies of tokens ranked by when they are merged: tiktoken's files (Qwen 1, Kimi) and Mistral's tekken.json.

They merge the neighbours that form the token of the lowest rank, and take a word that is a token as it is. Sources:
tiktoken's README, Qwen's and Kimi's tokenization files, and mistral-common's description of tekken.json.
"""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes
from lltool.quant.convert.byte_level import text_of_bytes
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
_KIMI_RESERVED = 256
TEKKEN = "tekken.json"
TEKKEN_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def find_rank_file(path: Path) -> Path | None:
    """The tiktoken file or tekken.json in folder `path`."""
    found = [*sorted(path.glob("*.tiktoken")), path / "tiktoken.model", path / TEKKEN]
    return next((file for file in found if file.exists()), None)


def known_pretokenizer(file: Path, settings: Mapping[str, Any]) -> str | None:
    """The pre-tokenizer of a file, from its name and that of the tokenizer's class; None if they do not tell."""
    if file.name == "tiktoken.model" and "TikToken" not in str(settings.get("tokenizer_class")):
        return None
    return {"qwen.tiktoken": "qwen2", "tiktoken.model": "kimi-k2", TEKKEN: "tekken"}.get(file.name)


def from_rank_file(file: Path, settings: Mapping[str, Any], pre: str | None) -> "Tokenizer":
    """The tokenizer of a file, with its special tokens; `pre` names the pre-tokenizer of one that is not known.

    Raises InputError for a file of another form, and for one whose pre-tokenizer is not known.
    """
    if file.name == TEKKEN:
        return _from_tekken(file)
    tokens = _read_tiktoken(file)
    name = known_pretokenizer(file, settings) or pre
    special = {"qwen.tiktoken": _QWEN, "tiktoken.model": _kimi_special(settings, len(tokens))}.get(file.name, [])
    if name not in PRE_TOKENIZERS:
        raise InputError(
            f"{file}: does not state how text is split before merging; give the name of the pre-tokenizer as --pre "
            f"NAME; this version knows {', '.join(PRE_TOKENIZERS)}"
        )
    return _build(file, tokens, PRE_TOKENIZERS[name].patterns, special, len(tokens))


def _read_tiktoken(file: Path) -> list[bytes]:
    """The tokens in the order of their ranks. Raises InputError, naming the line, for a line of another form."""
    try:
        lines = read_bytes(file).splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        text, _, rank = line.partition(b" ")
        try:
            tokens[int(rank)] = b64decode(text, validate=True)
        except (ValueError, Base64Error):
            raise InputError(f"{file}, line {number}: {line[:60]!r}, wanted a token in base64 and its rank") from None
    if not tokens or tokens.keys() != set(range(len(tokens))) or len(set(tokens.values())) < len(tokens):
        raise InputError(f"{file}: {len(tokens)} tokens, wanted different ones with the ranks from 0 on, each once")
    return [tokens[rank] for rank in range(len(tokens))]


def _kimi_special(settings: Mapping[str, Any], first: int) -> list[str]:
    """Kimi's special tokens: those that tokenizer_config.json names by id, and reserved ones between them."""
    decoder = settings.get("added_tokens_decoder")
    named = decoder if isinstance(decoder, Mapping) else {}
    texts = []
    for id in range(first, first + _KIMI_RESERVED):
        found = named.get(str(id))
        content = found.get("content") if isinstance(found, Mapping) else None
        texts.append(content if isinstance(content, str) else f"<|reserved_token_{id}|>")
    return texts


def _from_tekken(file: Path) -> "Tokenizer":
    from tokenizers import processors

    content = read_json(file)
    config, rows, special = content.get("config"), content.get("vocab"), content.get("special_tokens") or []
    if not (isinstance(config, dict) and isinstance(rows, list) and isinstance(special, list)):
        raise InputError(f"{file}: wanted config, vocab and special_tokens, as in Mistral's files")
    try:
        reserved, size = int(config["default_num_special_tokens"]), int(config["default_vocab_size"])
        tokens = [b64decode(row["token_bytes"], validate=True) for row in rows[: size - reserved]]
        names = {int(row["rank"]): str(row["token_str"]) for row in special}
        pattern = str(config["pattern"])
    except (KeyError, TypeError, ValueError, Base64Error) as error:
        raise InputError(f"{file}: not a vocabulary of Mistral's: {type(error).__name__}: {error}") from None
    first = [names.get(id, f"<SPECIAL_{id}>") for id in range(reserved)]
    tokenizer = _build(file, tokens, (pattern,), first, 0)
    if "<s>" in first:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", first.index("<s>"))]
        )
    return tokenizer


def _build(
    file: Path, tokens: Sequence[bytes], patterns: Sequence[str], special: Sequence[str], first_special: int
) -> "Tokenizer":
    """A byte-level tokenizer; the ids of the special tokens begin at `first_special`, 0 or after all tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    offset = len(special) if first_special == 0 else 0
    ranks = {text_of_bytes(token): rank for rank, token in enumerate(tokens)}
    missing = [byte for byte in range(256) if text_of_bytes(bytes([byte])) not in ranks]
    if missing:
        raise InputError(f"{file}: has no token for the byte 0x{missing[0]:02x}")
    merges = []
    for text, rank in ranks.items():
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [(ranks[left], ranks[right], left, right) for left, right in halves if left in ranks and right in ranks]
        merges += [(rank, *pair) for pair in sorted(pairs)]
    vocab = {text: rank + offset for text, rank in ranks.items()}
    if offset:
        vocab |= {text: id for id, text in enumerate(special)}
    pairs_of_texts = [(left, right) for *_, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs_of_texts, ignore_merges=True))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer
