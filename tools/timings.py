"""What a generation took, in the lines that `lltool run` and `lltool chat` print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lltool.engine.generate import Generation, Timings


def timing_lines(generation: "Generation", load_seconds: float | None = None) -> list[str]:
    """One line about the answer, and one about each of its tokens if there are several."""
    times, sampler = generation.timings, generation.sampler
    cached = f" and {times.cached} cached" if times.cached else ""
    parts = (
        *([] if load_seconds is None else [f"load {load_seconds:.2f} s"]),
        f"prompt {times.prompt_tokens}{cached} tokens, {times.prompt_rate:.1f} t/s",
        f"first token {times.first_token_seconds:.2f} s",
        f"{times.tokens} tokens, {times.decode_rate:.1f} t/s",
        generation.detail or "interrupted",
        *([f"{generation.dropped} tokens dropped, as the context was full"] if generation.dropped else []),
        *([f"seed {sampler.seed}"] if sampler.chain.draws else []),
    )
    lines = [f"[{' | '.join(parts)}]"]
    if times.tokens > 1:
        costs = {"sampling": times.sample_seconds, "text": times.text_seconds, "output": times.output_seconds}
        items = [f"model {_milliseconds(times.evaluate_seconds, times)} ({times.evaluate_rate:.1f} t/s)"]
        items += [f"{name} {_milliseconds(seconds, times)}" for name, seconds in costs.items()]
        lines.append(f"[a token: {' + '.join(items)} ms]")
    return lines


def _milliseconds(seconds: float, times: "Timings") -> str:
    """Milliseconds for each token after the first."""
    return f"{seconds * 1e3 / (times.tokens - 1):.2f}"
