"""llama.cpp's grammars, through libllama."""

import codecs
import ctypes

import numpy as np
from numpy.typing import NDArray

from lltool.engine.text.tokenizer import Tokenizer
from tests.engine.text.test_tokenizer_rival import Rival


class _Datum(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class _Data(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.POINTER(_Datum)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


class RivalGrammar:
    """A text under a grammar of llama.cpp."""

    def __init__(self, llama: ctypes.CDLL, vocabulary: ctypes.c_void_p, size: int, grammar: str) -> None:
        llama.llama_sampler_init_grammar.restype = ctypes.c_void_p
        sampler = llama.llama_sampler_init_grammar(vocabulary, grammar.encode(), b"root")
        assert sampler, "llama.cpp refuses the grammar"
        self._llama, self._sampler = llama, ctypes.c_void_p(sampler)
        self._rows = np.zeros(size, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (V,)."""
        self._rows["id"], self._rows["logit"] = np.arange(len(self._rows)), 0
        pointer = self._rows.ctypes.data_as(ctypes.POINTER(_Datum))
        data = _Data(pointer, len(self._rows), -1, False)
        self._llama.llama_sampler_apply(self._sampler, ctypes.byref(data))
        return np.asarray(self._rows["logit"] == 0)

    def accept(self, id: int) -> None:
        self._llama.llama_sampler_accept(self._sampler, ctypes.c_int32(id))

    def free(self) -> None:
        self._llama.llama_sampler_free(self._sampler)


class Oddities:
    """What llama.cpp does with tokens otherwise, and why that is not what a grammar says.

    - Control tokens satisfy rules of characters by their names.
    - Bytes that are not UTF-8 are allowed: numbers above U+10FFFF, surrogates, bytes that do not continue a character.
    - A token is read to its first NUL; one that begins with it is never allowed.
    - A part of a character is refused by a negated range if one of its completions is in the range.
    """

    def __init__(self, rival: Rival, tokenizer: Tokenizer) -> None:
        self.pieces = [tokenizer.piece(id) for id in range(tokenizer.size)]
        is_control = np.array([tokenizer.is_control(id) for id in range(tokenizer.size)])
        ends = np.isin(np.arange(tokenizer.size), list(tokenizer.end_of_generation))
        self.is_unnamed = is_control & ~ends
        self.has_nul = np.array([b"\0" in piece for piece in self.pieces])
        self.other_ends = np.array([rival.is_end(id) for id in range(tokenizer.size)]) != ends

    def explain(
        self, ours: NDArray[np.bool_], theirs: NDArray[np.bool_], text: bytes
    ) -> tuple[list[int], dict[str, int]]:
        """The tokens on which the two differ after `text` for no known reason, and how many there are for each."""
        unknown, known = [], dict.fromkeys(("control", "not UTF-8", "NUL", "part of a character", "ends"), 0)
        for id in np.flatnonzero(ours != theirs).tolist():
            if self.other_ends[id]:
                known["ends"] += 1
            elif self.has_nul[id]:
                known["NUL"] += 1
            elif theirs[id] and self.is_unnamed[id]:
                known["control"] += 1
            elif theirs[id] and not _is_utf8(text + self.pieces[id], whole=False):
                known["not UTF-8"] += 1
            elif ours[id] and not _is_utf8(text + self.pieces[id], whole=True):
                known["part of a character"] += 1
            else:
                unknown.append(id)
        return unknown, known


def _is_utf8(data: bytes, *, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(data, final=whole)
    except UnicodeDecodeError:
        return False
    return True
