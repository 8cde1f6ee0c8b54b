"""`lltool tasks`: measures how many of a file's questions a model answers correctly, and how its texts vary."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from lltool.gguf.optional import require
from lltool.tools.arguments import (
    Commands,
    add_command,
    add_model_arguments,
    command_parser,
    positive,
    print_json,
    take_model,
)
from lltool.tools.engine_arguments import add_engine_arguments, engine_options
from lltool.tools.parser import CommandParser
from lltool.tools.progress import progress_bar

if TYPE_CHECKING:
    from lltool.engine.model import Model

EXAMPLES = """
lltool tasks hellaswag -m model.gguf -f hellaswag_val_full.txt --tasks 400
lltool tasks winogrande -m model.gguf -f winogrande-debiased-eval.csv
lltool tasks multiple-choice -m model.gguf -f mmlu-validation.bin --tasks 750 --json
lltool tasks generation -m model.gguf -f prompts.jsonl --samples 8 --bert-score models/roberta-large
lltool tasks lm-eval run --model lltool --model_args pretrained=model.gguf --tasks arc_easy
"""
CHOICE = {
    "hellaswag": "endings of a text: six lines a task (context, number of the right ending, four endings)",
    "winogrande": "a word for a gap: CSV of index, sentence with a _, two choices, 1 or 2",
    "multiple-choice": "answers to a question: llama.cpp's binary file",
}
MOST_USED = "-m -hf -f --tasks --samples -n --temp -s --bert-score -c -t"
FLAGS = {f"--{task}": task for task in CHOICE}


def main(argv: list[str]) -> int:
    if argv[:1] == ["lm-eval"]:  # its own parser takes the rest
        return _lm_eval(argv[1:])
    arguments = parser().parse_args(argv)
    return _generate(arguments) if arguments.task == "generation" else _answer(arguments)


def from_perplexity(argv: Sequence[str]) -> list[str] | None:
    """The arguments of this command that equal llama-perplexity's arguments for a task; None if there is no task."""
    found = [FLAGS[argument] for argument in argv if argument in FLAGS]
    return [found[0], *(argument for argument in argv if argument != f"--{found[0]}")] if found else None


def parser() -> CommandParser:
    parser = command_parser(
        "tasks",
        "Asks a model the questions of a task file, with the same subset, scores and lines as llama-perplexity.",
        EXAMPLES,
    )
    kinds = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for task, help in CHOICE.items():
        kind = _add(kinds, task, f"Asks a model for {help}.", help)
        kind.add_argument("-f", "--file", "-bf", "--binary-file", type=Path, required=True, help="task file")
        count = "400" if task == "hellaswag" else "0"
        kind.add_argument(
            "--tasks", f"--{task}-tasks", type=_count, help=f"tasks to take, 0 for all (default {count})", metavar="N"
        )
    help = "how texts of a model vary (distinct-n, self-BLEU) and how near they are to references (chrF, BERTScore)"
    kind = _add(kinds, "generation", f"Measures {help}.", help)
    kind.add_argument(
        "-f",
        "--file",
        type=Path,
        required=True,
        help="JSON lines with prompt or messages, and optionally reference or references",
    )
    kind.add_argument("--samples", type=positive, default=4, help="texts a prompt (default 4)")
    kind.add_argument("-n", "--n-predict", type=positive, default=64, help="tokens a text, at most (default 64)")
    kind.add_argument("--temp", type=float, default=0.8, help="temperature (default 0.8)")
    kind.add_argument("-s", "--seed", type=int, default=0, help="seed (default 0)")
    kind.add_argument(
        "--bert-score", type=Path, metavar="DIR", help="measure BERTScore with the BERT model in this folder"
    )
    kinds.add_parser(
        "lm-eval", help="run lm-evaluation-harness with its own options and --model lltool", add_help=False
    )
    return parser


def _add(kinds: Commands, task: str, description: str, help: str) -> CommandParser:
    """Adds a task's parser with the options that all tasks have."""
    examples = "\n".join(line for line in EXAMPLES.splitlines() if f" {task} " in line)
    kind = add_command(kinds, task, help, description, examples, most_used=MOST_USED)
    add_model_arguments(kind)
    kind.add_argument("-c", "--ctx-size", type=positive, help="tokens of the longest text (default: up to 4096)")
    kind.add_argument("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    kind.add_argument("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    add_engine_arguments(kind, measures=True)
    return kind


def _lm_eval(argv: list[str]) -> int:
    require("lm_eval", "lm-evaluation-harness")
    from lltool.eval.scoring.lm_eval import run

    return run(argv)


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _load(arguments: argparse.Namespace) -> "Model":
    from lltool.engine.model import load_model

    arguments.model = take_model(arguments)
    return load_model(
        arguments.model,
        context=arguments.ctx_size,
        sequences=2,
        batch=arguments.batch_size,
        precision=arguments.precision,
        **engine_options(arguments),
    )


def _answer(arguments: argparse.Namespace) -> int:
    from lltool.eval.tasks.choice import TASKS, Answer, answer_task
    from lltool.eval.tasks.report import HEADERS, format_row, format_summary, to_record

    task, path, answers = arguments.task, arguments.file, list[Answer]()
    questions = TASKS[task].read(path)  # fails before the model is loaded
    with (
        _load(arguments) as model,
        progress_bar("task") if arguments.json else nullcontext() as bar,
    ):

        def show(done: int, total: int, answer: Answer) -> None:
            answers.append(answer)
            if bar:
                bar(done, total)
                return
            if done == 1 and task in HEADERS:
                print(f"\n{HEADERS[task]}")
            print(format_row(task, answers), flush=True)

        start = perf_counter()
        answer_task(model, TASKS[task], questions, name=str(path), tasks=arguments.tasks, progress=show)
        seconds = perf_counter() - start
        if arguments.json:
            print_json(to_record(model, task, path, answers, seconds))
        else:
            print(f"\n{format_summary(task, answers)}")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from lltool.eval.tasks.generation import (
        Sampling,
        find_scorers,
        format_measures,
        generate_samples,
        measure_samples,
        read_prompts,
        to_record,
    )

    prompts = read_prompts(arguments.file)
    sampling = Sampling(arguments.samples, arguments.n_predict, arguments.temp, arguments.seed)
    scorers = find_scorers(prompts, arguments.bert_score)  # fails before the work if something is missing
    with _load(arguments) as model, progress_bar("text") as show:
        samples = generate_samples(model, prompts, sampling, progress=show)
        measures = measure_samples(samples, [prompt.references for prompt in prompts], scorers)
        if arguments.json:
            print_json(to_record(model, arguments.file, sampling, samples, measures))
        else:
            print(format_measures(measures))
    return 0
