"""Chat templates: transformers' rendering of the same templates, and errors that name the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.text.chat import TEMPLATE_KEY, ChatTemplate
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import ValueType, array, boolean, string, u32
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.sentencepiece_model import TokenType

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Wörld? <b> & 'c' "}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And twice that?"},
    ],
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Météo <now>", "parameters": {"type": "object"}},
    }
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    letters = [chr(code) for code in range(0x21, 0x7F)]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": string("gpt2"),
            "tokenizer.ggml.pre": string("gpt-2"),
            "tokenizer.ggml.tokens": array(ValueType.STRING, [*letters, "<s>", "</s>"]),
            "tokenizer.ggml.token_type": array(
                ValueType.INT32, np.array([TokenType.NORMAL] * len(letters) + [TokenType.CONTROL] * 2, np.int32)
            ),
            "tokenizer.ggml.merges": array(ValueType.STRING, []),
            "tokenizer.ggml.bos_token_id": u32(len(letters)),
            "tokenizer.ggml.eos_token_id": u32(len(letters) + 1),
            "tokenizer.ggml.add_bos_token": boolean(True),
        }
    )


@pytest.mark.parametrize("name", ["smollm2-q4_1", "qwen25coder-0.5b-q4_k_m"])
def test_real_templates_as_transformers_renders_them(real_model: Callable[[str], Path], name: str) -> None:
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    with open_gguf(real_model(name)) as file:
        source = file.metadata[TEMPLATE_KEY].data
        tokenizer = Tokenizer.from_gguf(file.metadata)
        template = ChatTemplate.from_gguf(file.metadata, tokenizer)
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):
            for prompt in (True, False):
                (wanted,), _ = rendering.render_jinja_template(
                    conversations=[messages], chat_template=source, tools=tools, add_generation_prompt=prompt
                )
                assert template.render(messages, add_generation_prompt=prompt, tools=tools) == wanted


def test_a_conversation_becomes_control_tokens_and_text(real_model: Callable[[str], Path]) -> None:
    with open_gguf(real_model("smollm2-q4_1")) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
        template = ChatTemplate.from_gguf(file.metadata, tokenizer)
    ids = template.encode([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    pieces = " ".join(tokenizer.tokens[id] for id in ids)
    turn = "<|im_start|> {} Ċ {} <|im_end|> Ċ "
    assert pieces == turn.format("system", "s") + turn.format("user", "u") + "<|im_start|> ass istant Ċ"


def test_the_begin_token_comes_once(tokenizer: Tokenizer) -> None:
    bos = tokenizer.bos
    for source in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        assert ChatTemplate.compile(source, tokenizer).encode([{"role": "user", "content": "A"}]) == [
            bos,
            ord("A") - 0x21,
        ]


def test_what_templates_can_use(tokenizer: Tokenizer) -> None:
    def render(source: str, **variables: Any) -> str:
        return ChatTemplate.compile(source, tokenizer).render([], **variables)

    assert render("{{ bos_token }}|{{ eos_token }}") == "<s>|</s>"
    assert render("{{ x | tojson }}", x={"ä": "<&>"}) == '{"ä": "<&>"}'
    assert render("{% generation %}{{ 1 }}{% endgeneration %}") == "1"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("  {% if true %}\na\n  {% endif %}\nb") == "a\nb"
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert render("{{ add_generation_prompt }}") == "True"
    assert render("{{ tools is none }}") == "True"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "chat template, line 2: "),
        ("a\n{% nonsense %}", "chat template, line 2: .*nonsense"),
        ("\n\n{{ raise_exception('roles must alternate') }}", "chat template, line 3: roles must alternate"),
        ("\n{{ missing.field }}", "chat template, line 2: 'missing' is undefined"),
        ("{{ 1 // 0 }}", "chat template, line 1: "),
        ("\n{{ [].append(1) }}", "chat template, line 2: .*unsafe|not safely callable"),
        ("{{ ''.__class__.__mro__ }}", "chat template, line 1: .*unsafe"),
        ("{{ range(10 ** 9) }}", "chat template, line 1: Range too big"),
        ("\n{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template, line 2: .*nested too deeply"),
        ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "chat template: .*nested too deeply"),
    ],
)
def test_errors_name_the_line(tokenizer: Tokenizer, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatTemplate.compile(source, tokenizer).render([])


def test_a_file_without_a_template_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="has no chat template; give one with --chat-template-file"):
        ChatTemplate.from_gguf({}, tokenizer)
