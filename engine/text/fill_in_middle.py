"""The tokens for filling in the middle of a text, by key or, as in llama.cpp's vocabulary code, by name."""

from collections.abc import Mapping

from lltool.engine.text.vocabulary_keys import VocabularyKeys

# The names of each, in the order in which llama.cpp lists them, and the key that older files have.
_NAMES = {
    "pre": """<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>""",
    "suf": """<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>""",
    "mid": """<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>""",
    "pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "sep": "<|file_sep|>",
}
_OLD_KEYS = {"pre": "prefix", "suf": "suffix", "mid": "middle"}
ENDS = ("pad", "rep", "sep")
"""Those that end a text that was filled in."""


def find_fill_in_middle(keys: VocabularyKeys, special: Mapping[str, int]) -> dict[str, int]:
    """The ids of the tokens before the prefix ("pre"), suffix and middle, of padding, repository and file separator.

    `special` has the ids of the control and user-defined tokens; other tokens of these names are text.
    """
    found = {}
    for kind, names in _NAMES.items():
        by_name = next((special[name] for name in names.split() if name in special), None)
        by_key = keys.token(f"fim_{kind}", by_name)
        id = keys.token(_OLD_KEYS[kind], by_key) if kind in _OLD_KEYS else by_key
        if id is not None:
            found[kind] = id
    return found
