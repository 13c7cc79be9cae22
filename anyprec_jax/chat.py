"""Chat templates: the Jinja programs, shipped with a model, that turn messages into the text it was trained on.

A template is foreign code. It runs in Jinja's immutable sandbox and is offered the names that `transformers` offers,
since that is what its author wrote it against.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

Message: TypeAlias = Mapping[str, Any]  # {"role": "user", "content": "..."}


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Renders messages with a model's chat template.

    Args:
      template: Jinja source.
      messages: in order, each with a `role` and a `content`.
      add_generation_prompt: end with the words that make the model answer.
      variables: further names for the template, such as `bos_token`.

    Raises:
      ValueError: the template cannot be parsed, fails, or rejects these messages.
    """
    context = {
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        **(variables or {}),
    }
    try:
        return _compile(template).render(context, add_generation_prompt=add_generation_prompt)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template cannot be parsed: {error.message} (line {error.lineno})") from error
    except Exception as error:  # a template is a program: it can raise whatever a program can
        raise ValueError(f"the chat template failed: {type(error).__name__}: {error}") from error


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks what a model is trained to say; here it renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012  (the type that Jinja reads)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
