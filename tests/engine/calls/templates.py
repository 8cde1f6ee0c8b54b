"""Short chat templates with calls of tools, each in the form of a family of models."""

_HEAD = (
    "{%- if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif -%}"
)


def _template(call: str, *, before: str = "", between: str = "", after: str = "", reasoning: str = "") -> str:
    """A template whose messages begin and end as ChatML's; `call` writes one call of the loop."""
    return (
        _HEAD
        + "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
        + reasoning
        + "{{ message.content or '' }}"
        "{%- if message.tool_calls %}"
        + before
        + "{%- for each in message.tool_calls %}{% set call = each.function %}"
        + call
        + "{%- if not loop.last %}"
        + between
        + "{%- endif %}{% endfor %}"
        + after
        + "{%- endif %}<|im_end|>\n{% endfor -%}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_THINK = "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
_ITEMS = "{%- for key, value in call.arguments.items() %}"
_VALUE = "{{ value if value is string else value | tojson }}"

HERMES = _template(
    '{{ \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}{{ call.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}",
    reasoning=_THINK,
)
TAGGED = _template(
    "{{ '\n<tool_call>\n<function=' + call.name + '>\n' }}"
    + _ITEMS
    + "{{ '<parameter=' + key + '>\n' }}"
    + _VALUE
    + "{{ '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}",
    reasoning=_THINK,
)
GLM = _template(
    "{{ '\n<tool_call>' + call.name }}"
    + _ITEMS
    + "{{ '\n<arg_key>' + key + '</arg_key>\n<arg_value>' }}"
    + _VALUE
    + "{{ '</arg_value>' }}{% endfor %}{{ '\n</tool_call>' }}",
)
MISTRAL = _template(
    "{% if each.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{{ \'{"name": "\' + call.name + \'", "arguments": \' + call.arguments | tojson }}'
    "{{ ', \"id\": \"' + each.id + '\"}' }}",
    before="[TOOL_CALLS][",
    between=", ",
    after="]",
)
MISTRAL_NEW = _template("{{ '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments | tojson }}")
DEEPSEEK = _template(
    "{{ '<｜tool▁call▁begin｜>' + call.name + '<｜tool▁sep｜>' + call.arguments + '<｜tool▁call▁end｜>' }}",
    before="<｜tool▁calls▁begin｜>",
    after="<｜tool▁calls▁end｜>",
)
NAMED = _template(
    "{{ '{\"' + call.name + '\": ' + call.arguments | tojson + '}' }}",
    before="<|tools_prefix|>[",
    between=", ",
    after="]<|tools_suffix|>",
)
PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARMONY = (
    "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content or '' }}"
    "{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{% else %}<|end|>{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
