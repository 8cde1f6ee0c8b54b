"""A tiny model whose importance is measured, for tests of what follows."""

from pathlib import Path
from typing import Any

from lltool.quant.convert.conversion import convert
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint
from tests.tiny_tokenizers import TEXT


def measure_tiny_model(family: str, folder: Path, **sizes: Any) -> Path:
    """Writes a float32 model `m.gguf`, and the importance `i.gguf` of a text, in a folder, and returns the folder."""
    convert(make_checkpoint(family, folder / "checkpoint", **sizes), folder / "m.gguf")
    (folder / "text.txt").write_text(TEXT)
    command = ["imatrix", "-m", f"{folder}/m.gguf", "-f", f"{folder}/text.txt", "-o", f"{folder}/i.gguf", "-c", "64"]
    assert main(command) == 0
    return folder
