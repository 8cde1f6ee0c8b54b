"""Several files written from one read of their tensors."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Bytes, Model, Tensor
from lltool.gguf.writer import Output, write_together


def make_tensor(name: str, rows: int, columns: int) -> Tensor:
    data = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32).view(np.uint8)
    return Tensor(name, GGMLType.F32, (rows, columns), lambda start, stop: data[start:stop])


def test_outputs_are_written_together_window_by_window(tmp_path: Path) -> None:
    asked: list[tuple[str, int, int]] = []

    def logged(name: str, tensor: Tensor) -> Tensor:
        def read(start: int, stop: int) -> Bytes:
            asked.append((name, start, stop))
            return tensor.read(start, stop)

        return replace(tensor, read=read)

    v, w = make_tensor("v", 3, 4), make_tensor("w", 2, 4)
    outputs = [
        Output(tmp_path / f"{name}.gguf", Model({"by": string("?")}, [logged(name, v), w]), shard_sizes=sizes)
        for name, sizes in (("a", None), ("b", (0, 1, 1)))
    ]
    (tmp_path / "b").mkdir()
    first, second = write_together(outputs, window_weights=8, seal=lambda: {"by": string("!")})
    paths = [*first, *second]
    assert [path.name for path in paths] == ["a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]
    assert asked == [("a", 0, 2), ("b", 0, 2), ("a", 2, 3), ("b", 2, 3)]
    for path in paths[:2]:
        with open_gguf(path) as file:
            assert file.metadata["by"].data == "!"
            for found, wanted in zip(file.tensors, [v, w], strict=True):
                np.testing.assert_array_equal(found.data(), wanted.data())
    assert open_gguf(paths[1]).shard_sizes == (1, 1)
