"""SentencePiece Unigram ("t5" in GGUF files): of all ways to split a text into tokens, the most probable one.

Keys as in llama.cpp's vocabulary code, which falls back to no byte tokens; they are used here if the file has them.
"""

import numpy as np

from lltool.engine.text.tokenizer_spm import bytes_of_token
from lltool.engine.text.vocabulary_keys import NEVER, TokenizerKind, VocabularyKeys, encoder_of
from lltool.gguf.errors import InputError
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import read_splits_words
from lltool.quant.convert.unigram import build_unigram


def read_unigram(keys: VocabularyKeys) -> TokenizerKind:
    """Raises InputError for scores that are not finite, a broken map of characters or no token for unknown text."""
    scores = keys.numbers("scores", np.float32, len(keys.tokens), default=0)
    if not np.isfinite(scores).all():
        raise InputError(f"tokenizer.ggml.scores: token {int(np.argmin(np.isfinite(scores)))} has none that is finite")
    unknown = keys.token("unknown", default=2)
    if unknown is None:
        raise InputError("tokenizer.ggml.unknown_token_id: missing; Unigram needs a token for unknown characters")
    adds_space, merges_spaces = keys.flag("add_space_prefix", True), keys.flag("remove_extra_whitespaces", False)
    try:
        tokenizer = build_unigram(
            keys.mergeable,
            scores.tolist(),
            [
                TokenType.UNUSED if text == NEVER else type
                for text, type in zip(keys.mergeable, keys.types.tolist(), strict=True)
            ],
            unknown,
            charsmap=keys.bytes("precompiled_charsmap"),
            merges_spaces=merges_spaces,
            splits_words=read_splits_words(keys.metadata),
            adds_space=adds_space and merges_spaces,
        )
    except InputError as error:
        raise InputError(f"tokenizer.ggml.{error}") from None
    normalizer = tokenizer.normalizer
    return TokenizerKind(
        encoder_of(tokenizer),
        bytes_of_token,
        eos=1,
        add_eos=True,
        add_space_prefix=adds_space and not merges_spaces,
        drops_space=adds_space,
        normalize=normalizer.normalize_str if normalizer else None,
        is_lossless=False,
    )
