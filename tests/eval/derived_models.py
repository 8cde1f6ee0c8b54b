"""Files derived from the sample models, for which the golden figures were made."""

import subprocess
import sys
from pathlib import Path

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.gguf.writer import write_gguf
from lltool.quant.retype import retype


def f16_copy(source: Path, target: Path) -> Path:
    """The same weights, with matrices in F16."""
    with open_gguf(source) as file:
        types = {t.name: GGMLType.F16 if len(t.shape) > 1 else t.type for t in file.tensors}
        write_gguf(target, retype(file, lambda tensor: types[tensor.name]))
    return target


def off_grid_twin(script: Path, source: Path, target: Path) -> Path:
    """The same function with weights on no quantization grid, in F16; `script` is the golden data's offgrid.py."""
    subprocess.run([sys.executable, script, source, target], check=True)
    return target
