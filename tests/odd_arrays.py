"""Arrays that a careless caller may hand to native code."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

KINDS = (
    "other type",
    "other byte order",
    "misaligned",
    "strided",
    "other order",
    "fewer dimensions",
    "more dimensions",
    "read-only",
    "a row less",
    "a column less",
    "empty",
    "list",
)


def as_odd(array: NDArray[Any], kind: str) -> Any:
    """`array`, or what can be made of it, as one of KINDS."""
    match kind:
        case "other type":
            return array.astype(np.float64 if array.dtype != np.float64 else np.int16)
        case "other byte order":
            return array.astype(array.dtype.newbyteorder())
        case "misaligned":
            raw = np.zeros(array.nbytes + 1, np.uint8)
            raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
            return raw[1:].view(array.dtype).reshape(array.shape)
        case "strided":
            return np.repeat(array, 2, axis=-1)[..., ::2]
        case "other order":
            return np.asfortranarray(np.concatenate([array, array])) if array.ndim > 1 else np.repeat(array, 2)[::2]
        case "fewer dimensions":
            return array.ravel() if array.ndim > 1 else np.array(1, array.dtype)
        case "more dimensions":
            return array[None]
        case "read-only":
            copy = array.copy()
            copy.flags.writeable = False
            return copy
        case "a row less":
            return array[1:].copy()
        case "a column less":
            return array[..., 1:].copy()
        case "empty":
            return np.empty((0,) * array.ndim, array.dtype)
    return array.tolist()


def odd_arrays(*arrays: NDArray[Any]) -> st.SearchStrategy[Any]:
    """One of `arrays` made odd, or something else altogether."""
    odd = st.builds(as_odd, st.sampled_from(arrays), st.sampled_from(KINDS))
    return odd | st.sampled_from([None, 0, -1, 1.5, "text", b"bytes", (), object()])
