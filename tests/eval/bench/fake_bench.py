"""A stand-in for llama-bench."""

import sys
from pathlib import Path

from lltool.eval.bench.peers.llama_bench import LlamaBench

FAKE_BENCH = '''#!{python}
"""Stands in for llama-bench and logs its arguments."""
import json, sys
from pathlib import Path
if "--help" in sys.argv:
    print("""{help}""")
    sys.exit(0)
with Path("{log}").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
ns = 2000 if given.get("--repack", given.get("-rtr")) == "1" else 4000
row = {{"build_commit": "abcd123", "build_number": 7, "model_type": "llama 256M", "flash_attn": -1}}
row["samples_ns"] = [ns] * int(given["-r"])
print(json.dumps([row]))
'''


def fake_bench(folder: Path, help: str = "-p, --n-prompt\n  -d, --n-depth\n  --repack <0|1>") -> LlamaBench:
    path = folder / "llama-bench"
    path.write_text(FAKE_BENCH.format(python=sys.executable, help=help, log=folder / "log"))
    path.chmod(0o755)
    return LlamaBench(path)
