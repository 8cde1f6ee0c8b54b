"""Writes docs/en/architectures.md and docs/zh/architectures.md: how each architecture compares with its originals.

    LLAMA_CPP_LIB_PATH=... python -m tests.engine.models.architectures_page

Every case of test_architectures.py is made, converted and run, and its logits are compared with those of transformers
and llama.cpp; of the encoders of test_encoders.py, the hidden states are compared with transformers'.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lltool.gguf.reader import open_gguf
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.registry import FAMILIES, find_family
from tests.docs.examples import REPOSITORY
from tests.encoder_checkpoints import ENCODERS
from tests.engine.models.left_out import format_left_out
from tests.engine.models.test_architectures import CASES, difference, load, make_case, prompt
from tests.engine.models.test_architectures_rival import DIFFERENT, difference_from
from tests.engine.models.test_encoders import make_states, states_of
from tests.libllama import MISSING, find_library

TEXTS = {
    "en": """# Architectures

<!-- made by python -m tests.engine.models.architectures_page -->

Each architecture is compared with its original on small random checkpoints in float32: transformers' logits of 300
tokens, and llama.cpp's of the file that `convert` writes. The table shows the largest difference as a part of the
logits' spread. Tests repeat it token by token and with several sequences at once, with a limit of 1e-4.
transformers has no RWKV 7; there, the original is a computation by the formulas of its paper.

| architecture | class of the checkpoint | export | transformers | llama.cpp |
|---|---|---|---:|---:|
""",
    "zh": """# 模型架构

<!-- made by python -m tests.engine.models.architectures_page -->

每种架构都用 float32 的小型随机检查点与原实现对比：transformers 对 300 个词元的 logits，以及 llama.cpp 运行 `convert`
所写文件得到的 logits。表中是最大差异占 logits 取值范围的比例。测试还会逐词元、以及多个序列同时运行来重复比较，
上限为 1e-4。transformers 没有 RWKV 7，其原实现是按论文公式写出的计算。

| 架构 | 检查点的类 | 导出 | transformers | llama.cpp |
|---|---|---|---:|---:|
""",
}
ENCODERS_TEXT = {
    "en": """## Encoders

Of encoders, the hidden states of ten texts in one batch are compared with those of transformers. They are not exported.

| architecture | class of the checkpoint | transformers |
|---|---|---:|
""",
    "zh": """## 编码器

编码器比较的是同一批十段文本的隐藏状态与 transformers 的差异。编码器不能导出。

| 架构 | 检查点的类 | transformers |
|---|---|---:|
""",
}
WORDS = {
    "en": {"yes": "yes", "no": "no", "notes": "What llama.cpp does otherwise, in the cases that have it:"},
    "zh": {"yes": "可以", "no": "不可以", "notes": "llama.cpp 在相应配置下的不同之处（英文）："},
}


@dataclass
class Row:
    """The largest differences of a family's cases; `llama_cpp` only of cases that llama.cpp computes alike."""

    family: Family
    transformers: float = 0.0
    llama_cpp: float | None = None
    reasons: list[str] = field(default_factory=list)


def main() -> None:
    llama = find_library()
    if llama is None:
        raise SystemExit(MISSING)
    rows: dict[int, Row] = {}
    for number, case in enumerate(CASES):
        print(f"\r{number + 1} of {len(CASES)}: {case}".ljust(79), end="", flush=True)
        with TemporaryDirectory() as folder:
            measure(case, Path(folder), lambda path: difference_from(llama, path), rows)
    print()
    found = sorted(rows.values(), key=lambda row: (row.family.architecture, row.family.models))
    encoders = "".join(measure_encoder(family) for family in ENCODERS)
    for language, text in TEXTS.items():
        table = format_rows(found, WORDS[language])
        page = f"{text}{table}\n{ENCODERS_TEXT[language]}{encoders}\n{format_left_out(language)}"
        (REPOSITORY / "docs" / language / "architectures.md").write_text(page)


def measure(case: str, folder: Path, differs: Callable[[Path], float | None], rows: dict[int, Row]) -> None:
    path, wanted = make_case(case, folder / "own")
    with load(path, "cpu") as model:
        found = model.forward([(model.new_sequence(), prompt(), "all")]).all()
    family, _ = find_family(json.loads((path.parent / "config.json").read_text()), "config.json")
    row = rows.setdefault(FAMILIES.index(family), Row(family))
    row.transformers = max(row.transformers, difference(found, wanted))
    if case in DIFFERENT:
        reason, changes = DIFFERENT[case]
        if reason not in row.reasons:
            row.reasons.append(reason)
        if changes is None:
            return
        path, _ = make_case(case, folder / "as llama.cpp has it", **changes)
    theirs = differs(path)
    assert theirs is not None
    row.llama_cpp = max(row.llama_cpp or 0.0, theirs)


def measure_encoder(family: str) -> str:
    """The row of an encoder."""
    with TemporaryDirectory() as folder:
        path, wanted = make_states(family, Path(folder))
        error = difference(states_of(path, "cpu"), np.concatenate(wanted))
        with open_gguf(path) as file:
            architecture = file.metadata["general.architecture"].data
    return f"| {architecture} | {ENCODERS[family][0]} | {error:.0e} |\n"


def format_rows(rows: list[Row], words: dict[str, str]) -> str:
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
    lines = []
    for row in rows:
        classes = ", ".join(name for name in row.family.models if not name.endswith("Model") or "LMHead" in name)
        marks = "".join(f" [{reasons.index(reason) + 1}]" for reason in row.reasons)
        theirs = "–" if row.llama_cpp is None else f"{row.llama_cpp:.0e}"
        export = words["no" if row.family.no_export else "yes"]
        lines.append(f"| {row.family.architecture} | {classes} | {export} | {row.transformers:.0e} | {theirs}{marks} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", words["notes"], "", *notes, ""])


if __name__ == "__main__":
    main()
