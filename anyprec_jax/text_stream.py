"""Text that arrives token by token: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from anyprec_jax.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # what bytes that are not (yet) UTF-8 decode to
_CONTEXT = 4  # tokens of the prompt that the first new ones are decoded with


class TextBuffer:
    """Tokens in, text out, up to the first stop string; `text` is all that has been handed out."""

    def __init__(self, tokenizer: Tokenizer, *, prompt: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self._characters = Detokenizer(tokenizer, prompt)
        self._filter = StopFilter(stop)
        self.text = ""

    @property
    def is_stopped(self) -> bool:
        """A stop string is complete."""
        return self._filter.is_stopped

    def push(self, token: int) -> str:
        """Takes a token; returns the text that can be shown now."""
        return self._hand_out(self._filter.push(self._characters.push(token)))

    def finish(self) -> str:
        """The text that was held back, now that no token follows."""
        last = self._filter.push(self._characters.finish())
        return self._hand_out(last + self._filter.finish())

    def _hand_out(self, piece: str) -> str:
        self.text += piece
        return piece


class Detokenizer:
    """Turns tokens into text one by one, holding bytes back until they are a whole character.

    What a token means can depend on its neighbours (bytes of one character; the blank before a word that SentencePiece
    drops at the start of a text), so each is decoded together with those before it, back to the last piece that was
    handed out.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = list(context[-_CONTEXT:])
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Takes one token; returns the text that it completes."""
        self._pending.append(token)
        text = self._pending_text()
        return "" if text.endswith(_REPLACEMENT) else self._hand_out(text)

    def finish(self) -> str:
        """The text of what is left; bytes that never became a character are U+FFFD."""
        return self._hand_out(self._pending_text())

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._pending)[len(before) :]

    def _hand_out(self, text: str) -> str:
        if text:  # tokens without text, special ones, cannot serve as context
            self._shown, self._pending = self._pending, []
        return text


class StopFilter:
    """Passes text on up to the first stop string, holding back what might yet become one.

    Of several stop strings the one that is complete first ends the text, the longer one if two are at once: the outcome
    does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """Takes a piece of text; returns what can be shown."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins, short of all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
