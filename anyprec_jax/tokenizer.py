"""Text to token ids and back, with what a model says about its special tokens and its chat format.

On disk a tokenizer is `tokenizer.json` (the algorithm and the vocabulary), `tokenizer_config.json` (special tokens,
chat template) and `generation_config.json` (further tokens that end a text), as `transformers` lays them out.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from anyprec_jax.chat import Message, render_chat

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")

_TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_GENERATION = "generation_config.json"
_TEMPLATE = "chat_template.jinja"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and how text is cut along it.

    Attributes:
      backend: does the work.
      special_tokens: role (one of `ROLES`) to token, as text; those that the model has.
      further_eos_ids: ids that end a generated text besides that of the `eos_token`.
      chat_template: Jinja source, or None for a model that does not chat.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    further_eos_ids: tuple[int, ...] = ()
    chat_template: str | None = None

    @classmethod
    def from_folder(cls, path: Path) -> "Tokenizer | None":
        """Reads a tokenizer; None where the folder has no `tokenizer.json`.

        Raises:
          ValueError: one of the files is not what its name says.
        """
        if not (path / _TOKENIZER).is_file():
            return None
        backend = _read_backend(path / _TOKENIZER)
        config = _read_json(path / _CONFIG)
        special_tokens = _special_tokens(config, backend, path / _CONFIG)
        _apply_flags(backend, config, special_tokens)
        return cls(
            backend=backend,
            special_tokens=special_tokens,
            further_eos_ids=_end_ids(_read_json(path / _GENERATION), path / _GENERATION),
            chat_template=_chat_template(config, path),
        )

    @property
    def vocab_size(self) -> int:
        """How many tokens there are. A model's embedding may have more rows, for alignment."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self._id_of("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, as far as training goes."""
        return self._id_of("eos_token")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a generated text, `eos_id` first."""
        ids = self.further_eos_ids if self.eos_id is None else (self.eos_id, *self.further_eos_ids)
        return tuple(dict.fromkeys(ids))

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Cuts text into tokens.

        Args:
          text: what to cut. A special token that it spells out, `<|im_end|>` say, becomes that token either way.
          special_tokens: add those that the model expects around a text, such as a leading `bos_token`.

        Raises:
          ValueError: the text holds half of a surrogate pair, which is how Python reads a command line that is not UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not UTF-8: character {error.start} is {text[error.start]!a}") from error
        return self.backend.encode(text, add_special_tokens=special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation, special tokens included: encode it with `special_tokens=False`.

        Raises:
          ValueError: the model has no chat template, or it rejects these messages.
        """
        if self.chat_template is None:
            raise ValueError("the model has no chat template: give it plain text instead of a conversation")
        return render_chat(
            self.chat_template, messages, add_generation_prompt=add_generation_prompt, variables=self.special_tokens
        )

    def save(self, folder: Path) -> None:
        """Writes the files that `from_folder` and `transformers.AutoTokenizer` read, into an existing folder."""
        self.backend.save(str(folder / _TOKENIZER))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= self.special_tokens
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        _write_json(folder / _CONFIG, config)
        if self.eos_ids:
            _write_json(folder / _GENERATION, {"eos_token_id": list(self.eos_ids)})

    def _id_of(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)


def enclose(backend: tokenizers.Tokenizer, *, bos: str | None, eos: str | None) -> None:
    """Makes `backend` put `bos` before and `eos` after a text encoded with special tokens; None adds nothing.

    Raises:
      ValueError: a token is not in the vocabulary.
    """
    ids = {token: backend.token_to_id(token) for token in (bos, eos) if token is not None}
    for token, id in ids.items():
        if id is None:
            raise ValueError(f"the token {token!r} that should be added to every text is not in the vocabulary")
    pieces = [*([] if bos is None else [f"{bos}:0"]), "$A:0", *([] if eos is None else [f"{eos}:0"])]
    # The list form: in the string form a token with a blank in it would be cut in two.
    backend.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=list(ids.items()))  # pyright: ignore


def _apply_flags(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Flags that say what goes around a text overrule `tokenizer.json`; one that is left out then means no."""
    adds_bos, adds_eos = config.get("add_bos_token"), config.get("add_eos_token")
    if isinstance(adds_bos, bool) or isinstance(adds_eos, bool):
        bos = special_tokens.get("bos_token") if adds_bos else None
        eos = special_tokens.get("eos_token") if adds_eos else None
        enclose(backend, bos=bos, eos=eos)


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    _read_json(file)  # a JSON error has a line and a column; the library's own message has neither
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:  # the library raises bare Exception, and a panic in it is not even an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise ValueError(f"{file} is not a tokenizer: {error}") from error
    # A file may ask for every text to be padded or cut; here texts are whole.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an absent file says nothing."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} should hold a JSON object, but holds a {type(value).__name__}")
    return value


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _special_tokens(config: Mapping[str, Any], backend: tokenizers.Tokenizer, file: Path) -> dict[str, str]:
    """The special tokens that a config names, as text or as an object with its `content`, and the vocabulary knows."""
    tokens = {}
    for role in ROLES:
        value = config.get(role)
        token = value.get("content") if isinstance(value, dict) else value
        if token is None:
            continue
        if not isinstance(token, str):
            raise ValueError(f"{file}: {role} should be a string, but is {value!r}")
        if backend.token_to_id(token) is not None:
            tokens[role] = token
    return tokens


def _end_ids(config: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(id, int) and id >= 0 for id in ids):
        raise ValueError(f"{file}: eos_token_id should be one or more token ids, but is {value!r}")
    return tuple(ids)


def _chat_template(config: Mapping[str, Any], path: Path) -> str | None:
    """A file of its own wins; of several named templates the one called "default" is taken."""
    if (path / _TEMPLATE).is_file():
        return (path / _TEMPLATE).read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}.get(
            "default"
        )
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{path / _CONFIG}: chat_template should be a string, but is a {type(template).__name__}")
    return template
