"""The folder in which the examples of README and manual run: a real checkpoint, a model made of it, and texts."""

import os
from pathlib import Path

from lltool.eval.common.text import SAMPLE_TEXT
from lltool.quant.convert.conversion import convert
from lltool.quant.convert.export import export

CHECKPOINT = "SmolLM2-135M-Instruct"
MODEL = "smol.gguf"


class Workshop:
    """What the examples find: a checkpoint, `smol.gguf` made of it, and the texts text.txt and calibration.txt.

    Checkpoint and model are made once, of the real model `source`.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.checkpoint, self.model = folder / CHECKPOINT, folder / MODEL
        if not self.model.exists():
            folder.mkdir(parents=True, exist_ok=True)
            export(source, self.checkpoint)
            convert(self.checkpoint, self.model, "f16")

    def furnish(self, folder: Path) -> None:
        """Puts all of it into an empty folder, without copying the weights."""
        (folder / CHECKPOINT).mkdir()
        for file in self.checkpoint.iterdir():
            os.link(file, folder / CHECKPOINT / file.name)
        os.link(self.model, folder / MODEL)
        text = SAMPLE_TEXT.read_text()
        middle = text.index("\n\n", len(text) // 2)
        (folder / "text.txt").write_text(text[:middle])
        (folder / "calibration.txt").write_text(text[middle:])
