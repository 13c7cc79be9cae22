import functools

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from anyprec_jax.text_stream import Detokenizer, StopFilter, TextBuffer
from anyprec_jax.tokenizer import Tokenizer
from tests.anyprec_jax.small_tokenizers import SPECIAL, TEXTS, gpt2_words, train_byte_level


@functools.cache
def byte_level() -> Tokenizer:
    return Tokenizer(train_byte_level(gpt2_words()))


@functools.cache
def sentencepiece() -> Tokenizer:
    """Blanks belong to words, the first of a text is dropped, and what is not a token is spelt in bytes."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    model = models.BPE(
        vocab={token: id for id, token in enumerate(tokens)}, merges=merges, unk_token="<unk>", byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


def pieces(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context or [])
    return [*(detokenizer.push(id) for id in ids), detokenizer.finish()]


class TestDetokenizer:
    @pytest.mark.parametrize("make", [byte_level, sentencepiece])
    def test_pieces_make_up_the_text(self, make) -> None:
        tokenizer = make()
        for text in TEXTS:
            if not any(special in text for special in SPECIAL):
                assert "".join(pieces(tokenizer, tokenizer.encode(text, special_tokens=False))) == text

    @given(text=st.text(max_size=30))
    def test_pieces_make_up_any_text_and_characters_stay_whole(self, text: str) -> None:
        for tokenizer in (byte_level(), sentencepiece()):
            parts = pieces(tokenizer, tokenizer.encode(text, special_tokens=False))
            assert "".join(parts) == text
            assert "\ufffd" in text or not any("\ufffd" in part for part in parts)

    def test_a_character_comes_with_its_last_byte(self) -> None:
        tokenizer = sentencepiece()
        ids = tokenizer.encode("é😀", special_tokens=False)
        assert len(ids) == 1 + 2 + 4
        assert pieces(tokenizer, ids) == ["", "", "é", "", "", "", "😀", ""]

    def test_bytes_that_never_become_a_character(self) -> None:
        tokenizer = sentencepiece()
        cut = tokenizer.encode("the é", special_tokens=False)[:-1]
        assert pieces(tokenizer, cut)[-1] == "\ufffd"
        assert "".join(pieces(tokenizer, cut)) == tokenizer.decode(cut) == "the \ufffd"

    @given(data=st.data())
    def test_any_tokens_at_all(self, data: st.DataObject) -> None:
        tokenizer = byte_level()
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)

    def test_the_blank_before_the_first_new_word_is_kept(self) -> None:
        tokenizer = sentencepiece()
        prompt = tokenizer.encode("the", special_tokens=False)
        more = tokenizer.encode("the", special_tokens=False)
        assert "".join(pieces(tokenizer, more, context=prompt)) == " the"
        assert "".join(pieces(tokenizer, more)) == "the"

    def test_special_tokens_have_no_text(self) -> None:
        tokenizer = byte_level()
        the = tokenizer.encode("the", special_tokens=False)
        assert "".join(pieces(tokenizer, [1, *the, 2, *the, 0])) == "thethe"


def first_stop(text: str, stop: list[str]) -> str:
    """Reads one character at a time until it has just read a stop string, and cuts the longest such off."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))]
    return text


class TestStopFilter:
    @given(
        parts=st.lists(st.text("ab", max_size=4), max_size=8),
        stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    )
    def test_any_cut_of_any_text_ends_where_it_should(self, parts: list[str], stop: list[str]) -> None:
        stop_filter = StopFilter(stop)
        expected = first_stop("".join(parts), stop)
        shown = ""
        for part in parts:
            shown += stop_filter.push(part)
            assert expected.startswith(shown)  # nothing was shown that had to be taken back
        stopped = stop_filter.is_stopped
        assert shown + stop_filter.finish() == expected
        assert stopped == (expected != "".join(parts))

    @given(text=st.text("ab", max_size=12), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
    def test_no_more_is_held_back_than_a_stop_string_could_need(self, text: str, stop: list[str]) -> None:
        stop_filter = StopFilter(stop)
        shown = stop_filter.push(text)
        if not stop_filter.is_stopped:
            held = text[len(shown) :]
            assert not held or any(s.startswith(held) and s != held for s in stop)

    def test_nothing_follows_a_stop_string(self) -> None:
        stop_filter = StopFilter(["END"])
        assert [stop_filter.push(p) for p in ("so E", "N", "D and", " more")] == ["so ", "", "", ""]
        assert stop_filter.finish() == ""


class TestTextBuffer:
    def test_characters_and_stop_strings_together(self) -> None:
        tokenizer = byte_level()
        ids = tokenizer.encode("né the end", special_tokens=False)
        buffer = TextBuffer(tokenizer, stop=["the"])
        shown = []
        for id in ids:
            shown.append(buffer.push(id))
            if buffer.is_stopped:
                break
        assert "".join(shown) == buffer.text == "né "
        assert buffer.finish() == ""

    def test_what_was_held_back_comes_at_the_end(self) -> None:
        buffer = TextBuffer(byte_level(), stop=["end!"])
        shown = "".join(buffer.push(id) for id in byte_level().encode("the end", special_tokens=False))
        assert (shown, buffer.finish(), buffer.text) == ("the ", "end", "the end")
