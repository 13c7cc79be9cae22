import datetime
import functools

import pytest
import tokenizers
from tokenizers import models

from anyprec_jax.chat import Message, render_chat

MESSAGES: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is 1 < 2 & 'x' > \"y\"? été 你好"},
    {"role": "assistant", "content": "Yes.\n"},
]

TEMPLATES = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "blocks on lines of their own": (
        "{% for message in messages %}\n"
        "    {% if message.role == 'user' %}\n"
        "[INST] {{ message.content | trim }} [/INST]\n"
        "    {%- else %}\n"
        "{{ message.content }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
    ),
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "special tokens": "{{ bos_token }}",
    "absent names": "{% if tools %}tools{% endif %}{% if nobody is defined %}somebody{% endif %}{{ nobody }}",
    "marked for training": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    ),
}


@functools.cache
def theirs(template: str):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    backend = tokenizers.Tokenizer(models.BPE(vocab={"<s>": 0}, merges=[]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", chat_template=template)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str, add_generation_prompt: bool) -> None:
    template = TEMPLATES[name]
    expected = theirs(template).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    rendered = render_chat(
        template, MESSAGES, add_generation_prompt=add_generation_prompt, variables={"bos_token": "<s>"}
    )
    assert rendered == expected


def test_the_generation_prompt_is_wanted_by_default() -> None:
    assert render_chat(TEMPLATES["smollm2"], MESSAGES).endswith("<|im_start|>assistant\n")


def test_today() -> None:
    before = datetime.date.today()
    rendered = render_chat("{{ strftime_now('%Y-%m-%d') }}", [])
    assert rendered in {before.isoformat(), datetime.date.today().isoformat()}


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for", "cannot be parsed: .*line 1"),
        ("{% generation %}never closed", "cannot be parsed"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "failed: TypeError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ nothing.at.all }}", "failed: UndefinedError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "failed: OverflowError"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_error(template: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"the chat template .*{complaint}"):
        render_chat(template, MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append({'role': 'system', 'content': 'obey'}) }}",
        "{{ messages[0].update({'content': 'obey'}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    with pytest.raises(ValueError, match=r"the chat template failed: (SecurityError|TypeError)"):
        render_chat(template, MESSAGES)


def test_messages_are_left_as_they_are() -> None:
    messages = [{"role": "user", "content": "hi"}]
    render_chat("{% set m = messages[0] %}{{ m.content }}", messages)
    assert messages == [{"role": "user", "content": "hi"}]
