import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from anyprec_jax.tokenizer import Tokenizer, enclose
from tests.anyprec_jax.small_tokenizers import CHAT_TEMPLATE, TEXTS, gpt2_words, train_byte_level


@pytest.fixture(scope="module")
def backend() -> tokenizers.Tokenizer:
    return train_byte_level(gpt2_words())


@pytest.fixture
def tokenizer(backend: tokenizers.Tokenizer) -> Tokenizer:
    own = tokenizers.Tokenizer.from_str(backend.to_str())
    enclose(own, bos="<|im_start|>", eos="<|im_end|>")
    special_tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return Tokenizer(own, special_tokens, further_eos_ids=(0,), chat_template=CHAT_TEMPLATE)


def write_folder(folder: Path, backend: tokenizers.Tokenizer, **files: object) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


class TestEncode:
    def test_special_tokens_go_around_a_text_only_when_asked(self, tokenizer: Tokenizer) -> None:
        plain = tokenizer.encode("the end", special_tokens=False)
        assert tokenizer.encode("the end", special_tokens=True) == [1, *plain, 2]
        assert not {0, 1, 2} & set(plain)

    def test_special_tokens_within_a_text_are_read_as_such(self, tokenizer: Tokenizer) -> None:
        for special_tokens in (False, True):
            ids = tokenizer.encode("<|im_end|> the", special_tokens=special_tokens)
            assert ids.count(2) == 1 + special_tokens

    def test_decoding_inverts_encoding(self, tokenizer: Tokenizer) -> None:
        for text in TEXTS:
            ids = tokenizer.encode(text, special_tokens=True)
            assert tokenizer.decode(ids[1:-1], skip_special_tokens=False) == text

    @given(text=st.text(max_size=40))
    def test_decoding_inverts_encoding_of_any_text(self, backend: tokenizers.Tokenizer, text: str) -> None:
        tokenizer = Tokenizer(backend)
        ids = tokenizer.encode(text, special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert all(0 <= id < tokenizer.vocab_size for id in ids)

    def test_decoding_skips_special_tokens_unless_told(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("the", special_tokens=True)
        assert tokenizer.decode(ids) == "the"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>the<|im_end|>"

    def test_an_unknown_token_cannot_enclose(self, backend: tokenizers.Tokenizer) -> None:
        with pytest.raises(ValueError, match="'<s>' that should be added to every text is not in the vocabulary"):
            enclose(backend, bos="<s>", eos=None)


class TestIds:
    def test_ids_of_roles(self, tokenizer: Tokenizer) -> None:
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2, 0))

    def test_a_role_nobody_plays(self, backend: tokenizers.Tokenizer) -> None:
        bare = Tokenizer(backend)
        assert (bare.bos_id, bare.eos_id, bare.eos_ids) == (None, None, ())

    def test_an_end_named_twice_counts_once(self, backend: tokenizers.Tokenizer) -> None:
        tokenizer = Tokenizer(backend, {"eos_token": "<|im_end|>"}, further_eos_ids=(0, 2))
        assert tokenizer.eos_ids == (2, 0)


class TestFolder:
    def test_no_tokenizer(self, tmp_path: Path) -> None:
        assert Tokenizer.from_folder(tmp_path) is None

    def test_what_is_saved_is_what_is_read(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        tokenizer.save(tmp_path)
        read = Tokenizer.from_folder(tmp_path)
        assert read is not None
        assert read.backend.to_str() == tokenizer.backend.to_str()
        assert (read.special_tokens, read.eos_ids) == (tokenizer.special_tokens, tokenizer.eos_ids)
        assert read.chat_template == CHAT_TEMPLATE

    def test_special_tokens_as_text_and_as_objects(self, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
        config = {
            "bos_token": {"content": "<|im_start|>", "lstrip": False},
            "eos_token": "<|im_end|>",
            "unk_token": None,
            "pad_token": "<not in the vocabulary>",
        }
        read = Tokenizer.from_folder(write_folder(tmp_path, backend, tokenizer_config=config))
        assert read is not None
        assert read.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}

    @pytest.mark.parametrize(
        ("flags", "added"), [({}, [1, 2]), ({"add_bos_token": True}, [1]), ({"add_eos_token": False}, [])]
    )
    def test_flags_overrule_what_tokenizer_json_adds(
        self, tokenizer: Tokenizer, tmp_path: Path, flags: dict[str, bool], added: list[int]
    ) -> None:
        config = {**tokenizer.special_tokens, **flags}
        read = Tokenizer.from_folder(write_folder(tmp_path, tokenizer.backend, tokenizer_config=config))
        assert read is not None
        assert read.encode("", special_tokens=True) == added

    @pytest.mark.parametrize(("eos_token_id", "ends"), [(0, (2, 0)), ([2, 0, 1], (2, 0, 1)), (None, (2,))])
    def test_generation_config_names_further_ends(
        self, backend: tokenizers.Tokenizer, tmp_path: Path, eos_token_id: object, ends: tuple[int, ...]
    ) -> None:
        folder = write_folder(
            tmp_path,
            backend,
            tokenizer_config={"eos_token": "<|im_end|>"},
            generation_config={"eos_token_id": eos_token_id},
        )
        read = Tokenizer.from_folder(folder)
        assert read is not None
        assert read.eos_ids == ends

    def test_texts_are_neither_padded_nor_cut(self, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
        padding = tokenizers.Tokenizer.from_str(backend.to_str())
        padding.enable_padding(length=8)
        padding.enable_truncation(max_length=8)
        read = Tokenizer.from_folder(write_folder(tmp_path, padding))
        assert read is not None
        for text in ("the", "the end " * 8):
            assert read.encode(text, special_tokens=False) == backend.encode(text).ids

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("", "not valid JSON"),
            ("{", "not valid JSON"),
            ("\udcff", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ("[1]", "should hold a JSON object, but holds a list"),
            ("{}", "is not a tokenizer"),
            ('{"model": null}', "is not a tokenizer"),
            ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "is not a tokenizer"),
            ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "is not a tokenizer"),
        ],
    )
    def test_a_damaged_tokenizer(self, tmp_path: Path, content: str, complaint: str) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=complaint) as caught:
            Tokenizer.from_folder(tmp_path)
        assert str(tmp_path / "tokenizer.json") in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("tokenizer_config", "[]", "should hold a JSON object"),
            ("tokenizer_config", {"eos_token": 2}, "eos_token should be a string, but is 2"),
            ("tokenizer_config", {"chat_template": 5}, "chat_template should be a string, but is a int"),
            ("generation_config", {"eos_token_id": "2"}, "eos_token_id should be one or more token ids, but is '2'"),
            ("generation_config", {"eos_token_id": [-1]}, "should be one or more token ids"),
        ],
    )
    def test_a_damaged_config(
        self, backend: tokenizers.Tokenizer, tmp_path: Path, name: str, content: object, complaint: str
    ) -> None:
        write_folder(tmp_path, backend, **{name: content})
        with pytest.raises(ValueError, match=complaint) as caught:
            Tokenizer.from_folder(tmp_path)
        assert f"{name}.json" in str(caught.value)


class TestChatTemplate:
    def test_no_template(self, backend: tokenizers.Tokenizer) -> None:
        with pytest.raises(ValueError, match="no chat template"):
            Tokenizer(backend).render_chat([{"role": "user", "content": "hi"}])

    def test_it_is_given_the_special_tokens(self, backend: tokenizers.Tokenizer) -> None:
        tokenizer = Tokenizer(backend, {"bos_token": "<|im_start|>"}, chat_template="{{ bos_token }}!")
        assert tokenizer.render_chat([]) == "<|im_start|>!"

    def test_a_file_of_its_own_wins(self, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
        write_folder(tmp_path, backend, tokenizer_config={"chat_template": "in the config"})
        (tmp_path / "chat_template.jinja").write_text("in a file")
        read = Tokenizer.from_folder(tmp_path)
        assert read is not None
        assert read.render_chat([]) == "in a file"

    def test_of_several_the_default_is_taken(self, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
        templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "talk"}]
        read = Tokenizer.from_folder(write_folder(tmp_path, backend, tokenizer_config={"chat_template": templates}))
        assert read is not None
        assert read.render_chat([]) == "talk"


class TestTransformers:
    """A folder that we wrote, read by `transformers`."""

    @pytest.fixture
    def theirs(self, tokenizer: Tokenizer, tmp_path: Path):
        transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
        tokenizer.save(tmp_path)
        return transformers.AutoTokenizer.from_pretrained(tmp_path)

    def test_the_ids_are_the_same(self, tokenizer: Tokenizer, theirs) -> None:
        for text in TEXTS:
            for special_tokens in (False, True):
                expected = theirs(text, add_special_tokens=special_tokens)["input_ids"]
                assert tokenizer.encode(text, special_tokens=special_tokens) == expected
                assert tokenizer.decode(expected) == theirs.decode(expected, skip_special_tokens=True)

    def test_the_special_tokens_are_the_same(self, tokenizer: Tokenizer, theirs) -> None:
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert theirs.unk_token == "<|endoftext|>"

    def test_the_conversation_is_the_same(self, tokenizer: Tokenizer, theirs) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>Hi</b> & 'bye'"}]
        for prompt in (False, True):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert tokenizer.render_chat(messages, add_generation_prompt=prompt) == expected
