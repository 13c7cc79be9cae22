"""Tokenizers as the families have them, saved by `transformers` and read here: ids, special tokens, what goes around a text, chats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from anyprec_jax.tokenizer import Tokenizer
from tests.anyprec_jax.small_tokenizers import CORPUS, TEXTS, gpt2_words, train_byte_level

transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")

MESSAGES = [
    {"role": "user", "content": "What is 2 < 3 & 4?"},
    {"role": "assistant", "content": "  True.\n"},
    {"role": "user", "content": "Why?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *MESSAGES]
# As the models ship them, but for tools.
CHATS = {
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
        "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "chatml": (
        "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
        "{%- else %}\n    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n"
        "    {%- if (message.role == 'user') or (message.role == 'assistant') %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "phi-3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
        "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "olmo": (
        "{{ bos_token }}{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
}


def byte_level() -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges of byte-level BPE."""
    model = json.loads(train_byte_level(gpt2_words()).to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def sentencepiece(*special: str) -> tuple[dict[str, int], list[Any]]:
    """Of BPE over whole texts, blanks as U+2581, that falls back to bytes."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    return {token: number for number, token in enumerate(tokens)}, [tuple(merge) for merge in model["merges"]]


def enclosed(bos: str) -> Any:
    """Llama 3: `tokenizer.json` itself says what precedes a text."""
    backend = train_byte_level(gpt2_words())
    number = backend.token_to_id(bos)
    byte_level = processors.ByteLevel(trim_offsets=True)
    template = processors.TemplateProcessing(single=[f"{bos}:0", "$A:0"], special_tokens=[(bos, number)])  # pyright: ignore
    backend.post_processor = processors.Sequence([byte_level, template])  # pyright: ignore
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="<|im_end|>")


def made(name: str, pieces: tuple[dict[str, int], list[Any]], **options: Any) -> Any:
    return getattr(transformers, name)(vocab=pieces[0], merges=pieces[1], **options)


MADE: dict[str, Callable[[], Any]] = {
    "llama, mistral, phi-3": lambda: made("LlamaTokenizer", sentencepiece("<unk>", "<s>", "</s>")),
    "llama, no bos": lambda: made("LlamaTokenizer", sentencepiece("<unk>", "<s>", "</s>"), add_bos_token=False),
    "llama, bos and eos": lambda: made(
        "LlamaTokenizer", sentencepiece("<unk>", "<s>", "</s>"), add_bos_token=True, add_eos_token=True
    ),
    "llama 3, olmo": lambda: enclosed("<|endoftext|>"),
    "gemma": lambda: made("GemmaTokenizer", sentencepiece("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")),
    "gpt-2": lambda: made("GPT2Tokenizer", byte_level()),
    "opt": lambda: made(
        "GPT2Tokenizer", byte_level(), bos_token="<|im_end|>", eos_token="<|im_end|>", add_bos_token=True
    ),
    "qwen2": lambda: made("Qwen2Tokenizer", byte_level()),
    "qwen2, eos of a chat": lambda: made("Qwen2Tokenizer", byte_level(), eos_token="<|im_end|>"),
    "gpt-neox, stablelm": lambda: made("GPTNeoXTokenizer", byte_level()),
}


@pytest.mark.parametrize("name", MADE)
def test_ids_and_special_tokens(name: str, tmp_path: Path) -> None:
    theirs = MADE[name]()
    theirs.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours is not None
    for text in TEXTS:
        for special_tokens in (True, False):
            expected = theirs(text, add_special_tokens=special_tokens)["input_ids"]
            assert ours.encode(text, special_tokens=special_tokens) == expected, text
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", CHATS)
def test_chats(name: str, prompt: bool, tmp_path: Path) -> None:
    theirs = made("LlamaTokenizer", sentencepiece("<unk>", "<s>", "</s>"))
    theirs.chat_template = CHATS[name]
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours is not None
    for messages in (MESSAGES, SYSTEM, MESSAGES[1:]):
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as refusal:  # a template's own
            with pytest.raises(ValueError, match=str(refusal)):
                ours.render_chat(messages, add_generation_prompt=prompt)
            continue
        rendered = ours.render_chat(messages, add_generation_prompt=prompt)
        assert rendered == expected
        chat = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt)
        ids = chat["input_ids"] if not isinstance(chat, list) else chat
        assert ours.encode(rendered, special_tokens=False) == ids
