"""Gemma 4's BPE ("gemma4" in GGUF files): merges over whole lines, spaces as ▁, and bytes for unknown characters.

As in llama.cpp's vocabulary code: no words are split off, and a run of line ends is a piece of its own.
"""

from lltool.engine.text.tokenizer_spm import bytes_of_token
from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys, encoder_of, is_text
from lltool.gguf.errors import InputError


def read_gemma4(keys: VocabularyKeys) -> TokenizerKind:
    """Raises InputError for merges that do not match the tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {text: id for id, text in enumerate(keys.mergeable) if is_text(text)}
    merges = [_cut(merge, vocabulary) for merge in keys.strings("merges")]
    unknown = keys.token("unknown")
    name = None if unknown is None else keys.tokens[unknown]
    if name is not None and unknown is not None:
        vocabulary.setdefault(name, unknown)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=name))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    return TokenizerKind(encoder_of(tokenizer), bytes_of_token, add_bos=True)


def _cut(merge: str, vocabulary: dict[str, int]) -> tuple[str, str]:
    """The two tokens of a merge; the first can begin with a space."""
    place = merge.find(" ", 1)
    left, right = merge[:place], merge[place + 1 :]
    if place < 0 or any(part not in vocabulary for part in (left, right, left + right)):
        raise InputError(f"tokenizer.ggml.merges: {merge!r} does not merge two tokens to a third")
    return left, right
