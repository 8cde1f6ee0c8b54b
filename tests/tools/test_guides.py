"""Command lines from the guides of llama.cpp, Ollama and mlx-lm, with lltool's command in place of the program."""

import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest

from lltool.gguf.errors import InputError
from lltool.tools import cli
from lltool.tools.arguments import take_name, words_with_model
from tests.eval.tiny_text_model import write_text_model

pytestmark = pytest.mark.usefixtures("without_gpu")

PROGRAMS = {
    "llama cli": "run",
    "llama-cli": "run",
    "llama-completion": "run",
    "llama-perplexity": "perplexity",
    "llama-imatrix": "imatrix",
    "llama-bench": "bench",
    "llama-quantize": "quantize",
    "llama-tokenize": "tokenize",
    "ollama run": "run",
    "mlx_lm.generate": "run",
}
GPU = ["-ngl"]
LACKS = "lltool does not have this option of llama.cpp"
GEMMA = "models/gemma-1.1-7b-it.Q4_K_M.gguf"

READ: list[tuple[str, dict[str, Any], list[str]]] = [  # line, what is read, which flags are noted as ignored
    ("llama-cli -m M.gguf -p P -n 100 --temp 0.7", {"name": "M.gguf", "predict": 100, "temperature": 0.7}, []),
    ("llama-cli -m model.gguf", {"name": "model.gguf", "prompt": None}, []),
    ("llama cli -hf ggml-org/Qwen3.5-0.8B-GGUF", {"name": "hf://ggml-org/Qwen3.5-0.8B-GGUF"}, []),
    ("llama-cli -hf ggml-org/gemma-3-1b-it-GGUF:Q8_0 -p Hi", {"name": "hf://ggml-org/gemma-3-1b-it-GGUF:Q8_0"}, []),
    ("llama-cli --hf-repo a/b --hf-file c-q4_0.gguf -p Hi", {"name": "hf://a/b/c-q4_0.gguf"}, []),
    ("llama-cli -m model.gguf -cnv -p Hi", {"interactive": True, "prompt": "Hi"}, []),
    ('llama-cli -m model.gguf -p "I believe the meaning of life is" -n 128 -no-cnv', {"raw": True, "predict": 128}, []),
    ("llama-cli -m m.gguf -ngl 99 -fa on -c 4096 -t 8", {"ctx_size": 4096, "threads": 8, "gpu_layers": 99}, ["-fa"]),
    ("llama-cli -m model.gguf -p Hi --no-mmap -b 256 -ub 256 --seed 42", {"load_mode": "none", "seed": 42}, ["-ub"]),
    (
        "llama-cli -m model.gguf -p Hi --temp 0.6 --top-p 0.95 --top-k 20 --min-p 0 --repeat-penalty 1.0",
        {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repeat_penalty": 1.0},
        [],
    ),
    ("llama-cli -m model.gguf -p Hi --jinja --color -n 10", {"predict": 10}, ["--jinja", "--color"]),
    (
        f'llama-completion -m {GEMMA} --jinja --single-turn -sys "You are a helpful assistant" -p "Hello"',
        {"system": "You are a helpful assistant", "prompt": "Hello"},
        ["--jinja", "--single-turn"],
    ),
    (f'llama-completion -m {GEMMA} -no-cnv --prompt "Once upon"', {"raw": True, "prompt": "Once upon"}, []),
    (f"llama-completion -m {GEMMA} --ignore-eos -n -1", {"ignore_eos": True, "predict": -1}, []),
    ("llama-completion -m m.gguf -f prompt.txt --n_predict 5", {"file": Path("prompt.txt"), "predict": 5}, []),
    ("llama-perplexity -m M -f T", {"name": "M", "file": [Path("T")]}, []),
    ("llama-perplexity --file wiki.raw -ngl 999 --model f.gguf", {"name": "f.gguf", "gpu_layers": 999}, []),
    ("llama-perplexity -m q.gguf --kl-divergence-base f16.kld --kl-divergence", {"kl_divergence": True}, []),
    ("llama-perplexity -m q.gguf -f T --chunks 32 --ppl-stride 128 -fa", {"stride": 128, "chunks": 32}, ["-fa"]),
    ("llama-bench -m M -p 512 -n 128", {"model": ["M"], "n_prompt": [512], "n_gen": [128]}, []),
    ("llama-bench -m a.gguf -m b.gguf -p 0 -n 128,256", {"model": ["a.gguf", "b.gguf"], "n_gen": [128, 256]}, []),
    ("llama-bench -m m.gguf -n 0 -p 1024 -b 128,256,512,1024", {"batch": [128, 256, 512, 1024]}, []),
    ("llama-bench -m m.gguf -n 0 -n 16 -p 64 -t 1,2,4,8", {"threads": [1, 2, 4, 8], "n_gen": [0, 16]}, []),
    ("llama-bench -m m.gguf -ngl 10,20,30,31", {"n_gpu_layers": [10, 20, 30, 31]}, []),
    ("llama-bench -m m.gguf -d 0,512 -o csv", {"n_depth": [0, 512], "format": "csv", "output": None}, []),
    ("llama-bench -m m.gguf -pg 512,128 -r 3 -o jsonl", {"pg": [(512, 128)], "format": "jsonl"}, []),
    ("llama-bench -m m.gguf --mmap 0", {"model": ["m.gguf"], "words": []}, ["--mmap"]),
    ("llama-quantize --pure F16.gguf OUT.gguf Q4_0", {"words": ["F16.gguf", "OUT.gguf", "Q4_0"], "pure": True}, []),
    ("llama-quantize input-model-f32.gguf q4_k_m 8", {"words": ["input-model-f32.gguf", "q4_k_m", "8"]}, []),
    (
        "llama-quantize --allow-requantize --leave-output-tensor --pure input-model-f32.gguf q4_k_m 8",
        {"allow_requantize": True, "leave_output_tensor": True, "pure": True},
        [],
    ),
    (
        "llama-quantize --imatrix imatrix.gguf --tensor-type attn_v=q5_k --tensor-type ffn_down=q5_k "
        "--prune-layers 20,21,22 input-model-f32.gguf q4_k_m 8",
        {"tensor_types": ["attn_v=q5_k", "ffn_down=q5_k"], "prune_layers": (20, 21, 22)},
        [],
    ),
    ("llama-imatrix -m M -f T -o O", {"name": "M", "file": Path("T"), "output_file": Path("O")}, []),
    ("llama-imatrix -m ggml-model-f16.gguf -f calibration-data.txt -ngl 99", {"name": "ggml-model-f16.gguf"}, GPU),
    (
        "llama-imatrix -m m.gguf -f t.txt --chunk 5 --output-frequency 20 --save-frequency 50 --parse-special",
        {"chunk": 5, "output_frequency": 20, "save_frequency": 50, "parse_special": True},
        [],
    ),
    ("llama-imatrix --in-file a.gguf --in-file b.gguf -o c.gguf", {"in_file": ["a.gguf", "b.gguf"]}, []),
    ("llama-tokenize -m m.gguf -p Hello --ids --no-bos", {"name": "m.gguf", "ids": True, "no_bos": True}, []),
    ("ollama run gemma3", {"name": "gemma3"}, []),
    ('ollama run llama3.2 "Summarize this file"', {"name": "llama3.2", "prompt": "Summarize this file"}, []),
    ("ollama run llama3.2 Why is the sky blue?", {"name": "llama3.2", "prompt": "Why is the sky blue?"}, []),
    (
        "ollama run hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M Hi --verbose",
        {"name": "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"},
        ["--verbose"],
    ),
    (
        "mlx_lm.generate --model M --prompt P --max-tokens 64 --temp 0.5 --top-p 0.9 --seed 1",
        {"name": "M", "prompt": "P", "predict": 64, "temperature": 0.5, "top_p": 0.9, "seed": 1},
        [],
    ),
    ('mlx_lm.generate --model M --prompt "How tall is Mt Everest?"', {"prompt": "How tall is Mt Everest?"}, []),
    ("mlx_lm.generate --model M --system-prompt S --prompt P", {"system": "S"}, []),
]  # fmt: skip
REFUSED = [
    (f"llama-completion -m {GEMMA} --chat-template gemma", "--chat-template"),
    ('llama-completion -r "User:" --in-prefix " "', "--in-prefix"),
    ("llama-cli -m m.gguf --mmproj p.gguf --image i.png", "--mmproj"),
    ("llama-cli -m m.gguf -md draft.gguf -p Hi", "-md"),
    ("llama-cli -m m.gguf -p Hi --control-vector a.gguf", "--control-vector"),
    ("llama-bench -m m.gguf -rpc host:1", "-rpc"),
]  # fmt: skip


def read(line: str) -> dict[str, Any]:
    """What the parser of the line's command reads, with the name of the one model, and the prompt of `run`."""
    program = next(name for name in PROGRAMS if line.startswith(f"{name} "))
    command = PROGRAMS[program]
    module = importlib.import_module(f"lltool.tools.{cli.COMMANDS[command].module}")
    words = shlex.split(line.removeprefix(program))
    if command in ("run", "bench"):
        reader = (
            module._parse
            if command == "run"
            else importlib.import_module("lltool.tools.bench_arguments").parse_arguments
        )
        found = vars(reader(words))
        return found | ({"name": found["model"]} if command == "run" else {})
    arguments = module.parser().parse_args(words)
    if command == "quantize":
        return vars(arguments) | {"words": words_with_model(arguments)}
    return vars(arguments) | ({"name": take_name(arguments)} if arguments.model else {})


@pytest.mark.parametrize(("line", "values", "ignored"), READ, ids=[line for line, *_ in READ])
def test_the_line_is_read(
    line: str, values: dict[str, Any], ignored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(line)
    assert {name: found[name] for name in values} == values
    notes = capsys.readouterr().err.splitlines()
    assert [note.split(":")[2].strip() for note in notes] == ignored
    assert all(note.startswith("lltool: note: ") and ": ignored, as " in note for note in notes)


@pytest.mark.parametrize(("line", "flag"), REFUSED, ids=[line for line, _ in REFUSED])
def test_the_line_is_refused_by_name(line: str, flag: str) -> None:
    with pytest.raises(InputError) as raised:
        read(line)
    assert str(raised.value).startswith(f"{flag}: {LACKS}; ")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("llama-cli -m M.gguf -p abc -n 4 --temp 0 -ngl 99", "\n"),
        ("ollama run M.gguf abc -n 2", "\n"),
        ("mlx_lm.generate --model M.gguf --prompt abc --max-tokens 2 --temp 0", "\n"),
        ("llama-bench -m M.gguf -p 8 -n 2 -r 1 -ngl 0,99 --no-history --no-memory", " pp8 |"),
        ("llama-perplexity -m M.gguf -f T -c 32", "Final estimate: PPL = "),
        ("llama-quantize --pure M.gguf OUT.gguf Q8_0", "OUT.gguf\n"),
        ("llama-imatrix -m M.gguf -f T -o O.gguf -c 64", "O.gguf\n"),
        ("llama-tokenize -m M.gguf -p abc --ids", "[65, 66, 67]\n"),
    ],
)
def test_the_line_runs(
    line: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text_model(tmp_path / "M.gguf")
    (tmp_path / "T").write_text("The quick brown fox jumps over the lazy dog. " * 8)
    program = next(name for name in PROGRAMS if line.startswith(f"{name} "))
    assert cli.main([PROGRAMS[program], *shlex.split(line.removeprefix(program))]) == 0
    assert shown in capsys.readouterr().out
