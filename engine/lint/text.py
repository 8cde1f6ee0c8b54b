"""Checks of the tokenizer and the chat template."""

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

from lltool.engine.lint.finding import Finding
from lltool.engine.text import tokenizer_spm
from lltool.engine.text.chat import TEMPLATE_KEY, ChatTemplate, Message
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value
from lltool.gguf.reader import GGUFFile
from lltool.quant.convert.hard_texts import TEXTS
from lltool.quant.convert.tokenizer_keys import read_end_ids

_PREFIX = "tokenizer.ggml."
_NONE = (-1, 0xFFFFFFFF)  # how files state that there is no such token
_QUESTION, _ANSWER = "What is a tide?", "The sea rises and falls twice a day"
_ENDLESS = "an answer does not end, and is followed by a made-up next turn"


def check_text(file: GGUFFile) -> Iterator[Finding]:
    """Checks the tokenizer, its special tokens and the chat template."""
    if f"{_PREFIX}model" not in file.metadata:
        yield Finding("warning", "tokenizer", "the file has no tokenizer", "text cannot be given to the model")
        return
    yield from _check_ids(file.metadata)
    try:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    except InputError as error:
        yield Finding("error", "tokenizer", str(error), "text cannot be given to the model")
        return
    yield from _check_vocabulary(file, tokenizer)
    yield from _check_round_trip(tokenizer)
    if TEMPLATE_KEY not in file.metadata:
        why = "it can complete text, but there is no way to chat with it; ignore this for a base model"
        yield Finding("note", "template", "the file has no chat template", why)
        yield from _check_end(tokenizer)
        return
    yield from _check_template(file.metadata, tokenizer)


def _check_ids(metadata: Mapping[str, Value]) -> Iterator[Finding]:
    tokens = metadata.get(f"{_PREFIX}tokens")
    if tokens is None or tokens.item is None:
        return
    size = len(tokens.data)
    for key, value in metadata.items():
        if not (key.startswith(_PREFIX) and key.endswith("_token_id")):
            continue
        if value.type not in INTEGERS:
            found = f"{key} is of type {value.type.name.lower()}, wanted an integer"
            yield Finding("error", "special tokens", found, "programs ignore it or refuse the file", ("--remove", key))
        elif not 0 <= value.data < size and value.data not in _NONE:
            found = f"{key} is {value.data}, but there are {size} tokens"
            yield Finding("error", "special tokens", found, "programs ignore it or refuse the file", ("--remove", key))


def _check_vocabulary(file: GGUFFile, tokenizer: Tokenizer) -> Iterator[Finding]:
    if "token_embd.weight" in file:
        rows = file.tensor("token_embd.weight").rows
        if tokenizer.size > rows:
            found = f"there are {tokenizer.size} tokens, but token_embd.weight has {rows} rows"
            yield Finding("error", "vocabulary", found, "the model cannot read its last tokens")
        architecture = file.metadata.get("general.architecture")
        key = f"{architecture.data}.vocab_size" if architecture else ""
        stated = file.metadata.get(key)
        if stated is not None and stated.data not in (rows, tokenizer.size):
            found = f"{key} is {stated.data}, but token_embd.weight has {rows} rows"
            yield Finding("warning", "vocabulary", found, "some programs rely on it", (f"{key}={rows}",))
    if tokenizer.add_bos and tokenizer.bos is None:
        found = f"{_PREFIX}add_bos_token is true, but there is no begin token"
        why = "programs refuse the file, or begin texts without it"
        yield Finding("error", "special tokens", found, why, (f"{_PREFIX}add_bos_token=bool:false",))
    for name, id in (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("eot", tokenizer.eot)):
        if id is not None and not tokenizer.is_control(id):
            found = f"{_PREFIX}{name}_token_id is {id}, {tokenizer.tokens[id]!r}, which is ordinary text"
            why = "the same characters in a text count as a signal, or a signal as text"
            yield Finding("warning", "special tokens", found, why)


def _check_round_trip(tokenizer: Tokenizer) -> Iterator[Finding]:
    if not tokenizer.kind.is_lossless:
        return  # encoding normalizes texts, so that they do not come back
    for text in TEXTS:
        if tokenizer_spm.SPACE in text:
            continue  # stands for a space
        try:
            found = tokenizer.decode(tokenizer.encode(text, add_special=False), special=True)
        except InputError as error:
            found = str(error)
        if found != text:
            match = SequenceMatcher(None, text, found, autojunk=False).get_matching_blocks()[0]
            at = match.size if match.a == match.b == 0 else 0
            what = f"the text {text[at : at + 20]!r} becomes {found[at : at + 20]!r} when encoded and decoded"
            yield Finding("error", "tokenizer", what, "the model does not see what was written; convert it again")
            return


def _check_end(tokenizer: Tokenizer) -> Iterator[Finding]:
    if not tokenizer.end_of_generation and not tokenizer.add_sep:  # which marks encoders
        found = f"no token ends a text: {_PREFIX}eos_token_id is missing"
        yield Finding("error", "special tokens", found, "generation goes on up to the limit of tokens")


def _check_template(metadata: Mapping[str, Value], tokenizer: Tokenizer) -> Iterator[Finding]:
    why = "chatting with the model fails; give another template with `lltool set MODEL --template FILE`"
    try:
        template = ChatTemplate.from_gguf(metadata, tokenizer)
    except InputError as error:
        yield Finding("error", "template", str(error), why)
        return
    question: list[Message] = [{"role": "user", "content": _QUESTION}]
    turns: list[Message] = [*question, {"role": "assistant", "content": _ANSWER}]
    try:
        asked = template.render(question)
        answered = template.render(turns, add_generation_prompt=False)
        without_prompt = template.render(question, add_generation_prompt=False)
    except InputError as error:
        yield Finding("error", "template", str(error), why)
        return
    finally:
        template.close()
    for content, rendered, who in ((_QUESTION, asked, "user"), (_ANSWER, answered, "assistant")):
        if content not in rendered:
            yield Finding("error", "template", f"the template leaves out what the {who} says", why)
            return
    if asked == without_prompt:
        found = "the template does not begin the assistant's turn when add_generation_prompt is set"
        yield Finding("warning", "template", found, "the model may go on with the user's turn instead of answering")
    yield from _check_answer_end(metadata, tokenizer, answered[answered.rindex(_ANSWER) + len(_ANSWER) :])


def _check_answer_end(metadata: Mapping[str, Value], tokenizer: Tokenizer, rest: str) -> Iterator[Finding]:
    """`rest` is what the template puts after an answer."""
    after = tokenizer.encode(rest, add_special=False, parse_special=True)
    end = next((id for id in after if tokenizer.is_control(id) or id in tokenizer.end_of_generation), None)
    if end is None:
        found = f"the template ends an answer with {rest!r}, which has no control token"
        yield Finding("warning", "template", found, f"nothing tells that it is over: {_ENDLESS}")
        yield from _check_end(tokenizer)
        return
    name = f"{end}, {tokenizer.tokens[end]!r}"
    eos, eot = metadata.get(f"{_PREFIX}eos_token_id"), metadata.get(f"{_PREFIX}eot_token_id")
    if end in (tokenizer.eos, tokenizer.eot, *read_end_ids(metadata, tokenizer.size)):
        return
    key = "eos" if eos is None or eot is not None or eos.data in _NONE else "eot"
    cure = (f"{_PREFIX}{key}_token_id=uint32:{end}",)
    shown = f"{_PREFIX}eos_token_id is {eos.data if eos else 'missing'}"
    if end in tokenizer.end_of_generation:
        found = f"the template ends an answer with token {name}, but {shown}"
        yield Finding(
            "warning", "template", found, f"in programs that do not know this token by name, {_ENDLESS}", cure
        )
    else:
        found = f"the template ends an answer with token {name}, which does not end generation; {shown}"
        yield Finding("error", "template", found, _ENDLESS, cure)
