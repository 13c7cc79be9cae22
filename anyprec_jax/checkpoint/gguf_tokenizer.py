"""The tokenizer that a GGUF file carries in its metadata.

llama.cpp defines what the `tokenizer.ggml.*` keys mean. Two kinds are read: "gpt2", byte-level BPE, whose `pre` names
the regular expressions that cut text into words first; and "llama", SentencePiece BPE, which merges whole texts in the
order of the scores.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gguf
import tokenizers
from gguf import TokenType
from tokenizers import decoders, models, normalizers, pre_tokenizers

from anyprec_jax.tokenizer import Tokenizer, enclose

_log = logging.getLogger(__name__)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"


class _PreTokenizer(NamedTuple):
    """How one value of `tokenizer.ggml.pre` prepares a text for the merges."""

    patterns: tuple[
        str, ...
    ]  # applied in turn: what a pattern matches becomes a word of its own, and so does what lies between
    ignore_merges: bool = False  # a word that is a token as a whole stays one, whatever the merges say
    adds_bos: bool = False  # where the file does not say
    normalizer: normalizers.Normalizer | None = None


_PRE_TOKENIZERS = {
    **dict.fromkeys(("default", "gpt-2", "olmo", "phi-2"), _PreTokenizer((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _PreTokenizer((_DIGIT, _GPT2))),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"), _PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _PreTokenizer((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _PreTokenizer((_QWEN2,), normalizer=normalizers.NFC())),
    "tekken": _PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
}

_ROLE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_END_KEYS = ("eot_token_id", "eom_token_id")  # end of turn, end of message
_SENTENCEPIECE_IDS = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}  # what llama.cpp assumes of a silent file


class _Vocabulary(NamedTuple):
    """The arrays of a GGUF tokenizer, checked against each other."""

    tokens: list[str]  # by id
    types: list[int]  # gguf.TokenType, by id
    scores: list[float] | None
    merges: list[tuple[str, str]] | None

    @property
    def ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens)}


def tokenizer_from_gguf(reader: gguf.GGUFReader) -> Tokenizer | None:
    """Builds the tokenizer of a GGUF file; None where the file has none.

    Args:
      reader: an open file; only its metadata is read.

    Raises:
      ValueError: a kind of tokenizer or of pre-tokenizer that is not supported (those that are get named), or metadata
        that does not fit together.
    """
    kind = _value(reader, "model", str)
    if kind is None or kind in ("none", "no_vocab"):
        return None
    if kind not in _BUILDERS:
        raise ValueError(f"a GGUF tokenizer of model {kind!r} is not supported; supported are {_listed(_BUILDERS)}")
    vocabulary = _read_vocabulary(reader)
    backend = _BUILDERS[kind](reader, vocabulary)
    _add_special_tokens(backend, vocabulary)
    defaults = _SENTENCEPIECE_IDS if kind == "llama" else {}
    special_tokens = {}
    for role, key in _ROLE_KEYS.items():
        id = _token_id(reader, key, vocabulary, defaults.get(key))
        if id is not None:
            special_tokens[role] = vocabulary.tokens[id]
    _apply_flags(reader, backend, special_tokens, adds_bos=kind == "llama" or _pre_tokenizer(reader).adds_bos)
    ends = [_token_id(reader, key, vocabulary, None) for key in _END_KEYS]
    return Tokenizer(
        backend=backend,
        special_tokens=special_tokens,
        further_eos_ids=tuple(id for id in ends if id is not None),
        chat_template=_value(reader, "tokenizer.chat_template", str),
    )


def _byte_level_bpe(reader: gguf.GGUFReader, vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2 introduced it."""
    if vocabulary.merges is None:
        raise ValueError("a GGUF tokenizer of model 'gpt2' needs tokenizer.ggml.merges, and the file has none")
    pre = _pre_tokenizer(reader)
    backend = _backend(models.BPE, vocabulary.ids, vocabulary.merges, ignore_merges=pre.ignore_merges)
    words = [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre.normalizer is not None:
        backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(reader: gguf.GGUFReader, vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    """SentencePiece BPE: blanks are U+2581, unknown characters fall back to bytes, the whole text is one word."""
    merges = _merges_from_scores(vocabulary) if vocabulary.merges is None else vocabulary.merges
    unknown = _token_id(reader, "unknown_token_id", vocabulary, _SENTENCEPIECE_IDS["unknown_token_id"])
    assert unknown is not None
    backend = _backend(
        models.BPE, vocabulary.ids, merges, unk_token=vocabulary.tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    blanks = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if _value(reader, "add_space_prefix", bool) is False:
        backend.normalizer = blanks
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    backend.decoder = decoders.Sequence(steps)
    return backend


_BUILDERS: dict[str, Callable[[gguf.GGUFReader, _Vocabulary], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
}


def _merges_from_scores(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores imply: every way to put a token together from two, best score first.

    SentencePiece joins whichever neighbours form the best token; BPE wants an ordered list of pairs. Pairs that form
    the same token are ordered as `transformers` orders them, longer left half first.

    Cost: the square of a token's length, summed over the vocabulary.
    """
    if vocabulary.scores is None:
        raise ValueError(
            "a GGUF tokenizer of model 'llama' needs tokenizer.ggml.scores or .merges, and the file has neither"
        )
    # Control tokens and bytes never arise by merging, though `<s>` might have the letters for it.
    normal = {
        t: s
        for t, k, s in zip(vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True)
        if k == TokenType.NORMAL
    }
    pairs = [
        (score, token[:cut], token[cut:])
        for token, score in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    pairs.sort(key=lambda pair: (pair[0], len(pair[1])), reverse=True)
    return [(left, right) for _, left, right in pairs]


def _add_special_tokens(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    """Makes control and user-defined tokens match whole, before anything else looks at the text."""
    special = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    added = [
        tokenizers.AddedToken(token, special=special[TokenType(kind)], normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in special
    ]
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])


def _pre_tokenizer(reader: gguf.GGUFReader) -> _PreTokenizer:
    name = _value(reader, "pre", str)
    if name is None:
        _log.warning(
            "the GGUF file does not say how text is cut into words (tokenizer.ggml.pre): GPT-2's rule is taken"
        )
        name = "default"
    if name not in _PRE_TOKENIZERS:
        raise ValueError(f"the GGUF pre-tokenizer {name!r} is not supported; supported are {_listed(_PRE_TOKENIZERS)}")
    return _PRE_TOKENIZERS[name]


def _apply_flags(
    reader: gguf.GGUFReader, backend: tokenizers.Tokenizer, special_tokens: dict[str, str], *, adds_bos: bool
) -> None:
    """Puts around a text what the file says belongs there; `adds_bos` is what holds where it says nothing."""
    around: dict[str, str | None] = {}
    for side, role, default in (("bos", "bos_token", adds_bos), ("eos", "eos_token", False)):
        flag = _value(reader, f"add_{role}", bool)
        if flag and role not in special_tokens:
            raise ValueError(f"the GGUF file has tokenizer.ggml.add_{role} set, but names no {role}_id")
        around[side] = special_tokens.get(role) if (default if flag is None else flag) else None
    enclose(backend, bos=around["bos"], eos=around["eos"])


def _read_vocabulary(reader: gguf.GGUFReader) -> _Vocabulary:
    tokens = _value(reader, "tokens", list)
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError("the GGUF file names a tokenizer but holds no tokenizer.ggml.tokens")
    # llama.cpp's spelling of a token that is empty: ids must keep their places.
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        twice = next(token for id, token in enumerate(tokens) if token in tokens[:id])
        raise ValueError(f"the GGUF vocabulary holds the token {twice!r} twice")
    types = _value(reader, "token_type", list) or [int(TokenType.NORMAL)] * len(tokens)
    scores = _value(reader, "scores", list)
    for key, values in (("token_type", types), ("scores", scores)):
        if values is not None and len(values) != len(tokens):
            raise ValueError(
                f"the GGUF vocabulary has {len(tokens)} tokens, but {len(values)} entries in tokenizer.ggml.{key}"
            )
    merges = _value(reader, "merges", list)
    return _Vocabulary(tokens, types, scores, None if merges is None else [_pair(merge) for merge in merges])


def _pair(merge: Any) -> tuple[str, str]:
    # From the second character on: the first may itself be a blank.
    cut = merge.find(" ", 1) if isinstance(merge, str) else -1
    if cut < 0:
        raise ValueError(f"a GGUF merge should be two tokens with a blank between them, but is {merge!r}")
    return merge[:cut], merge[cut + 1 :]


def _backend(
    model: Callable[..., models.Model], vocab: dict[str, int], merges: Sequence[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(model(vocab=vocab, merges=list(merges), **options))
    except Exception as error:  # bare Exception is what the library raises
        raise ValueError(f"the GGUF vocabulary and its merges do not fit together: {error}") from error


def _token_id(reader: gguf.GGUFReader, key: str, vocabulary: _Vocabulary, default: int | None) -> int | None:
    id = _value(reader, key, int)
    id = default if id is None else id
    if id is not None and not 0 <= id < len(vocabulary.tokens):
        raise ValueError(f"tokenizer.ggml.{key} is {id}, but the GGUF vocabulary has {len(vocabulary.tokens)} tokens")
    return id


def _value(reader: gguf.GGUFReader, key: str, kind: type) -> Any:
    """A metadata value, or None where it is absent; keys without a prefix are in `tokenizer.ggml`."""
    name = key if "." in key else f"tokenizer.ggml.{key}"
    field = reader.get_field(name)
    if field is None:
        return None
    value = field.contents()
    if not isinstance(value, kind):
        raise ValueError(f"{name} of the GGUF file should be a {kind.__name__}, but is a {type(value).__name__}")
    return value


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
