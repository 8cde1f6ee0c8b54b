"""The settings of sampling: one table of names, defaults, ranges, help and flags for all that offers them.

`SamplingSettings` is the table. The options of the command line, `/set` of a chat, saved conversations and the Python
interface are made from it, so that a new setting is written down once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

from lltool.engine.inputs import real_number, whole_number
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.text_file import decode_argument
from lltool.quant.convert.sampling_keys import KEYS, PREFIX, shortest

Kind = Literal["number", "whole", "seed", "flag", "steps", "texts", "biases"]

STEPS: Mapping[str, str] = {
    "penalties": "e",
    "dry": "d",
    "top_n_sigma": "s",
    "top_k": "k",
    "typ_p": "y",
    "top_p": "p",
    "min_p": "m",
    "xtc": "x",
    "temperature": "t",
    "adaptive_p": "a",
}
"""The steps of the chain with llama.cpp's letters for --sampling-seq; all but the last are in the default order."""

_STEP_NAMES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical": "typ_p", "typical_p": "typ_p"}


@dataclass(frozen=True)
class Setting:
    """What is to know about a setting: how it is given, what it means, and its range, of which both ends belong."""

    kind: Kind
    help: str
    flags: tuple[str, ...]
    low: float = 0
    high: float = 0
    names: tuple[str, ...] = ()  # other names of it, as Ollama, OpenAI or llama.cpp's server spell them


_WINDOW = 1 << 31
_MOST = 1e6


def _setting(default: Any, kind: Kind, help: str, *flags: str, **more: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(kind, help, flags, **more)})


def _number(default: float, high: float, help: str, *flags: str, low: float = 0, names: tuple[str, ...] = ()) -> Any:
    return _setting(default, "number", help, *flags, low=low, high=high, names=names)


def _whole(default: int, high: float, help: str, *flags: str, low: float = 0, names: tuple[str, ...] = ()) -> Any:
    return _setting(default, "whole", help, *flags, low=low, high=high, names=names)


@dataclass
class SamplingSettings:
    """The settings of llama.cpp's chain of samplers, with its defaults. Raises InputError for a value out of range."""

    temperature: float = _number(0.8, _MOST, "0 takes the likeliest token", "--temp", "--temperature", names=("temp",))
    top_k: int = _whole(40, _WINDOW, "sample from the K likeliest tokens; 0: all", "--top-k")
    top_p: float = _number(0.95, 1, "and of these, from the likeliest with this total probability; 1: all", "--top-p")
    min_p: float = _number(
        0.05, 1, "and of these, with at least this share of the likeliest's probability; 0: all", "--min-p"
    )
    seed: int | None = _setting(
        None, "seed", "the same seed gives the same text; -1: a random one", "-s", "--seed", high=math.inf
    )
    typical_p: float = _number(
        1.0, 1, "sample from the tokens that are nearest to the expected surprise, with this total probability; 1: off",
        "--typical", "--typical-p", names=("typ_p",),
    )  # fmt: skip
    top_n_sigma: float = _number(
        -1.0, _MOST, "keep tokens whose logit is at most N standard deviations below the largest; 0 or less: off",
        "--top-nsigma", "--top-n-sigma", low=-_MOST,
    )  # fmt: skip
    xtc_probability: float = _number(
        0.0, 1, "how often XTC removes all but the least likely of the tokens above its threshold; 0: off",
        "--xtc-probability",
    )  # fmt: skip
    xtc_threshold: float = _number(0.1, 1, "the probability that XTC looks for; above 0.5: off", "--xtc-threshold")
    repeat_last_n: int = _whole(
        64, _WINDOW, "the penalties look at so many tokens; 0: off, -1: the whole text", "--repeat-last-n", low=-1,
        names=("penalty_last_n",),
    )  # fmt: skip
    repeat_penalty: float = _number(
        1.0, _MOST, "divides the logits of tokens that have occurred, or multiplies negative ones; 1: off",
        "--repeat-penalty", low=1e-6, names=("repetition_penalty", "penalty_repeat"),
    )  # fmt: skip
    presence_penalty: float = _number(
        0.0, _MOST, "is subtracted from the logits of tokens that have occurred; 0: off", "--presence-penalty",
        low=-_MOST,
    )  # fmt: skip
    frequency_penalty: float = _number(
        0.0, _MOST, "is subtracted for each time that a token has occurred; 0: off", "--frequency-penalty", low=-_MOST
    )
    dry_multiplier: float = _number(
        0.0, _MOST, "DRY subtracts this times a power from the logits of tokens that would go on with a repetition; "
        "0: off", "--dry-multiplier",
    )  # fmt: skip
    dry_base: float = _number(1.75, _MOST, "the base of DRY's power", "--dry-base", low=1)
    dry_allowed_length: int = _whole(
        2, _WINDOW, "repetitions of so many tokens get the multiplier, and longer ones a power of the base",
        "--dry-allowed-length", low=1,
    )  # fmt: skip
    dry_penalty_last_n: int = _whole(
        64, _WINDOW, "DRY looks at so many tokens; 0: off, -1: the whole text", "--dry-penalty-last-n", low=-1
    )
    dry_sequence_breakers: Sequence[str] = _setting(
        ("\n", ":", '"', "*"), "texts", "repetitions end at this text; several can be given, and the first replaces "
        "the default ones; none: no such text", "--dry-sequence-breaker", names=("dry_sequence_breaker",),
    )  # fmt: skip
    dynatemp_range: float = _number(
        0.0, _MOST, "the temperature varies by so much with the entropy of the distribution; 0: off", "--dynatemp-range"
    )
    dynatemp_exponent: float = _number(
        1.0, _MOST, "the power of the entropy that sets the temperature", "--dynatemp-exp", names=("dynatemp_exp",)
    )
    mirostat: int = _whole(
        0, 2, "1 or 2: Mirostat of this version, which replaces all steps but the temperature; 0: off", "--mirostat"
    )
    mirostat_tau: float = _number(
        5.0, _MOST, "the surprise that Mirostat aims at, in bits", "--mirostat-ent", names=("mirostat_ent",)
    )
    mirostat_eta: float = _number(
        0.1, _MOST, "how fast Mirostat corrects itself", "--mirostat-lr", names=("mirostat_lr",)
    )
    adaptive_target: float = _number(
        -1.0, 1, "the step adaptive_p prefers tokens near this probability; below 0: off", "--adaptive-target", low=-1
    )
    adaptive_decay: float = _number(
        0.9, 0.99, "how much of its memory adaptive_p keeps from token to token", "--adaptive-decay"
    )
    samplers: Sequence[str] = _setting(
        tuple(STEPS)[:-1], "steps", f"the steps in their order, of {'; '.join(STEPS)}; others are left out",
        "--samplers", names=("sampling_seq", "sampler_seq"),
    )  # fmt: skip
    logit_bias: Mapping[int, float] = _setting(
        None, "biases", "is added to the logit of a token, as in 15043+1 or 15043-inf; can be given several times",
        "-l", "--logit-bias",
    )  # fmt: skip
    ignore_eos: bool = _setting(False, "flag", "never end the text by an end token of the model", "--ignore-eos")

    def __post_init__(self) -> None:
        for name in SETTINGS:
            setattr(self, name, checked_setting(name, getattr(self, name)))


class SamplingOptions(TypedDict, total=False):
    """`SamplingSettings` as named arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    repeat_last_n: int
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    adaptive_target: float
    adaptive_decay: float
    samplers: Sequence[str]
    logit_bias: Mapping[int, float]
    ignore_eos: bool


SETTINGS: Mapping[str, Setting] = {each.name: each.metadata["setting"] for each in fields(SamplingSettings)}
DEFAULTS: Mapping[str, Any] = {each.name: each.default for each in fields(SamplingSettings)}
OTHER_NAMES: Mapping[str, str] = {other: name for name, about in SETTINGS.items() for other in about.names}


def checked_setting(name: str, value: Any) -> Any:
    """The value in its own type. Raises TypeError for another type, and InputError for a value out of range."""
    about = SETTINGS[name]
    match about.kind:
        case "flag":
            if not isinstance(value, bool):
                raise TypeError(f"{name} {value!r}, wanted True or False")
            return value
        case "seed":
            return None if value is None else whole_number(name, value, 0)
        case "steps":
            return tuple(map(_step, _texts(name, value)))
        case "texts":
            texts = _texts(name, value)
            if "" in texts:
                raise InputError(f"{name} has an empty text")
            return texts
        case "biases":
            return _biases(name, value)
        case "whole":
            value = whole_number(name, value)
        case "number":
            real_number(name, value)
    if not about.low <= value <= about.high:
        raise InputError(f"{name} {value}, wanted a number from {about.low:g} to {about.high:g}")
    return value


def parse_setting(name: str, text: str) -> Any:
    """The value that a text gives, as on the command line. Raises InputError."""
    about = SETTINGS[name]
    match about.kind:
        case "number" | "whole" | "seed":
            return checked_setting(name, _parse_number(name, text, about))
        case "flag":
            if text.lower() not in ("true", "false", "on", "off"):
                raise InputError(f"{name} {text!r}, wanted on or off")
            return text.lower() in ("true", "on")
        case "steps":
            return parse_steps(text)
        case "texts":
            return () if text == "none" else checked_setting(name, (decode_argument(text, name, escapes=True),))
        case "biases":
            return checked_setting(name, dict(map(_parse_bias, text.split(","))) if text.strip() else {})


def show_setting_value(name: str, value: Any) -> str:
    """A value in words, which `parse_setting` reads if it is not several texts."""
    match SETTINGS[name].kind:
        case "steps":
            return ";".join(value)
        case "texts":
            return " ".join(map(repr, value)) or "none"
        case "biases":
            return ",".join(f"{id}{bias:+g}" for id, bias in value.items()) or "none"
        case "flag":
            return "on" if value else "off"
    return str(value)


def parse_steps(text: str) -> tuple[str, ...]:
    """The steps of names with ";" between them, or of llama.cpp's letters. Raises InputError for an unknown one."""
    names = [part.strip() for part in text.split(";") if part.strip()]
    if len(names) == 1 and names[0] not in STEPS and set(names[0]) <= set(STEPS.values()):
        return parse_step_letters(names[0])
    return tuple(map(_step, names))


def parse_step_letters(text: str) -> tuple[str, ...]:
    """The steps of llama.cpp's letters. Raises InputError for an unknown one."""
    by_letter = {letter: name for name, letter in STEPS.items()}
    if unknown := [letter for letter in text if letter not in by_letter]:
        raise InputError(f"no sampling step {unknown[0]!r} in {text!r}; wanted letters of {''.join(by_letter)}")
    return tuple(by_letter[letter] for letter in text)


def shipped_settings(metadata: Mapping[str, Value], *, given: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a model's file ships, without those that are `given`. Raises InputError for a bad value."""
    found = {}
    for name, key in KEYS.items():
        value = metadata.get(PREFIX + key.name)
        if value is None or name in given:
            continue
        data = shortest(value)
        try:
            if key.type == ValueType.STRING:
                found[name] = parse_steps(data) if isinstance(data, str) else checked_setting(name, data)
            elif SETTINGS[name].kind == "whole" and name != "repeat_last_n" and isinstance(data, int):
                found[name] = checked_setting(name, max(data, 0))  # llama.cpp takes numbers below 0 as 0
            else:
                found[name] = checked_setting(name, data)
        except (InputError, TypeError) as error:
            raise InputError(
                f"{PREFIX}{key.name}: {error}; give {SETTINGS[name].flags[-1]} to use another value"
            ) from None
    return found


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} {value!r}, wanted a list of texts")
    return tuple(value)


def _step(name: str) -> str:
    plain = name.strip().lower().replace("-", "_")
    by_letters = {step.replace("_", ""): step for step in STEPS}
    found = _STEP_NAMES.get(plain, by_letters.get(plain.replace("_", "")))
    if found is None:
        raise InputError(f"no sampling step {name!r}; wanted some of {', '.join(STEPS)}")
    return found


def _biases(name: str, value: Any) -> dict[int, float]:
    """OpenAI's requests have the ids as texts."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} {value!r}, wanted numbers by token id")
    found = {}
    for id, bias in value.items():
        id = int(id) if isinstance(id, str) and id.isascii() and id.isdigit() else id
        real_number(f"{name} of token {id}", bias)
        if not (bias == -math.inf or abs(bias) <= _MOST):
            raise InputError(f"{name} of token {id} is {bias}, wanted -inf or a number from {-_MOST:g} to {_MOST:g}")
        found[whole_number(f"{name}: token", id, 0)] = float(bias)
    return found


def _parse_number(name: str, text: str, about: Setting) -> float | None:
    read: Callable[[str], float] = float if about.kind == "number" else int
    try:
        value = read(text)
    except ValueError:
        what = "a number" if about.kind == "number" else "a whole number"
        raise InputError(f"{name} {text!r}, wanted {what} ({about.help})") from None
    return None if about.kind == "seed" and value == -1 else value


def _parse_bias(text: str) -> tuple[int, float]:
    head = text.strip()
    digits = len(head) - len(head.lstrip("0123456789"))
    id, bias = head[:digits], head[digits:]
    if bias.lower() == "false":  # as llama.cpp's server has it
        bias = "-inf"
    try:
        if not id or bias[:1] not in ("+", "-"):
            raise ValueError
        return int(id), float(bias)
    except ValueError:
        raise InputError(f"logit_bias {text!r}, wanted a token id and a signed number, as 15043+1") from None
