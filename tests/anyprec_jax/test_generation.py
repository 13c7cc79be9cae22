import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import generation
from anyprec_jax.generation import TextStream, generate, highest_precision, prefill_steps, readable_precisions, stream
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.model import Model
from anyprec_jax.sampling import checked_sampling, filter_logits
from tests.anyprec_jax.small_tokenizers import CHAT_TEMPLATE
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

PROMPT = [5, 17, 200, 3, 42]


@functools.cache
def plain() -> Model:
    return tiny_model()


@functools.cache
def quantized() -> Model:
    return quantized_tiny_model()


WHOLE = 128


def logits_without_a_cache(model: Model, tokens: Sequence[int], precision: int | None) -> np.ndarray:
    """Logits of the token after each, in one pass over the whole text (padded to one size: it compiles once)."""
    padded = jnp.asarray([*tokens, *[0] * (WHOLE - len(tokens))], jnp.int32)[None]
    logits = forward(model.params, padded, model.config, precision=precision)
    assert isinstance(logits, jax.Array)
    return np.asarray(logits)[0, : len(tokens)]


def assert_greedy(model: Model, prompt: Sequence[int], tokens: Sequence[int], precision: int | None) -> None:
    """Every token is the likeliest after those before it, up to what float32 leaves undecided."""
    logits = logits_without_a_cache(model, [*prompt, *tokens], precision)
    for position, token in enumerate(tokens, start=len(prompt) - 1):
        row = logits[position]
        undecided = 1e-4 * np.abs(row).max()
        assert row[token] >= row.max() - undecided


class TestGreedy:
    @pytest.mark.parametrize("length", [1, 16, 17, 40])
    def test_every_token_is_the_likeliest_after_those_before(self, length: int) -> None:
        prompt = np.random.default_rng(length).integers(0, 260, length).tolist()
        result = generate(plain(), prompt, precision=None, max_new_tokens=20)
        assert len(result.tokens) == 20
        assert_greedy(plain(), prompt, result.tokens, None)

    def test_of_a_quantized_model(self) -> None:
        tokens = generate(quantized(), PROMPT, precision=3, max_new_tokens=20).tokens
        assert_greedy(quantized(), PROMPT, tokens, 3)
        assert tokens != generate(plain(), PROMPT, precision=None, max_new_tokens=20).tokens

    def test_a_prompt_in_several_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prompt = np.random.default_rng(0).integers(0, 260, 40).tolist()
        expected = generate(plain(), prompt, precision=None, max_new_tokens=10).tokens
        monkeypatch.setattr(generation, "_MAX_PREFILL", 16)
        assert [step[:2] for step in prefill_steps(40)] == [(0, 16), (16, 32), (32, 40)]
        assert generate(plain(), prompt, precision=None, max_new_tokens=10).tokens == expected
        assert_greedy(plain(), prompt, expected, None)

    def test_numpy_leaves(self) -> None:
        model = dataclasses.replace(plain(), params=jax.tree.map(np.asarray, plain().params))
        texts = [generate(m, PROMPT, precision=None, max_new_tokens=20).tokens for m in (model, plain())]
        assert texts[0] == texts[1]

    def test_half_precision_weights(self) -> None:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), plain().params)
        model = dataclasses.replace(plain(), params=params)
        tokens = generate(model, PROMPT, precision=None, max_new_tokens=20).tokens
        logits = logits_without_a_cache(plain(), [*PROMPT, *tokens], None)[len(PROMPT) - 1 : -1]
        chosen = np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
        assert np.all(chosen >= logits.max(axis=1) - 0.1 * np.abs(logits).max())  # bfloat16 has 3 digits


def test_prompts_are_cut_into_steps_without_gaps() -> None:
    for length in (1, 15, 16, 17, 512, 513, 1500):
        steps = prefill_steps(length)
        assert [p for step in steps for p in range(step.start, step.end)] == list(range(length))
        for step in steps:
            assert step.padded >= step.end - step.start
            assert step.padded in {16, 32, 64, 128, 256, 512}


SAMPLED: dict[str, Any] = {
    "precision": None,
    "max_new_tokens": 40,
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
}


class TestSampled:
    def test_the_seed_decides(self) -> None:
        texts = [generate(plain(), PROMPT, seed=seed, **SAMPLED).tokens for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    def test_tokens_are_among_those_the_filters_leave(self) -> None:
        tokens = generate(plain(), PROMPT, **SAMPLED).tokens
        logits = logits_without_a_cache(plain(), [*PROMPT, *tokens], None)[len(PROMPT) - 1 : -1]
        # A little wider: a token on the edge may fall to either side.
        wider = checked_sampling(temperature=0.9, top_k=41, top_p=0.96, min_p=0.009)
        left = np.isfinite(jax.vmap(filter_logits, in_axes=(0, None))(jnp.asarray(logits), wider))
        assert all(left[i, token] for i, token in enumerate(tokens))
        assert tokens != logits.argmax(axis=-1).tolist()

    def test_one_candidate_is_greedy(self) -> None:
        greedy = generate(plain(), PROMPT, precision=None, max_new_tokens=40).tokens
        assert generate(plain(), PROMPT, **SAMPLED | {"temperature": 2.0, "top_k": 1}).tokens == greedy


class TestEnds:
    def test_length(self) -> None:
        result = generate(plain(), PROMPT, precision=None, max_new_tokens=7)
        assert (result.finish_reason, result.new_tokens, result.prompt_tokens) == ("length", 7, 5)
        assert result.text == plain_tokenizer().decode(result.tokens)

    @pytest.mark.parametrize("where", ["config", "tokenizer"])
    def test_an_end_token(self, where: str) -> None:
        tokens = generate(plain(), PROMPT, precision=None, max_new_tokens=30).tokens
        end = next(token for i, token in enumerate(tokens) if i >= 5 and token not in tokens[:i])
        at = tokens.index(end)
        if where == "config":
            config = dataclasses.replace(plain().config, eos_token_ids=(259, end))
            model = dataclasses.replace(plain(), config=config)
        else:
            tokenizer = dataclasses.replace(plain_tokenizer(), further_eos_ids=(end,))
            model = dataclasses.replace(plain(), tokenizer=tokenizer)
        result = generate(model, PROMPT, precision=None, max_new_tokens=30)
        assert (result.tokens, result.finish_reason) == (tokens[: at + 1], "stop")
        assert result.text == plain_tokenizer().decode(tokens[:at])

    def test_stop_strings(self) -> None:
        text = ascii_text(30)
        stop = text[12:15]
        at = text.index(stop)
        result = generate(ascii_model(), PROMPT, precision=None, max_new_tokens=30, stop=["not in there", stop])
        assert (result.text, result.finish_reason) == (text[:at], "stop")
        assert result.new_tokens == at + len(stop)  # a token a character, and none after the stop string

    def test_a_stop_string_that_does_not_come(self) -> None:
        text = ascii_text(30)
        result = generate(ascii_model(), PROMPT, precision=None, max_new_tokens=30, stop=[text[-1] + "never"])
        assert (result.text, result.finish_reason) == (text, "length")

    def test_a_model_without_a_tokenizer(self) -> None:
        model = dataclasses.replace(plain(), tokenizer=None)
        result = generate(model, PROMPT, precision=None, max_new_tokens=3)
        assert result.text is None
        assert result.tokens == generate(plain(), PROMPT, precision=None, max_new_tokens=3).tokens


def plain_tokenizer():
    tokenizer = plain().tokenizer
    assert tokenizer is not None
    return tokenizer


@functools.cache
def ascii_model() -> Model:
    """Writes letters only: a token a character. The bytes of the others are never likely."""
    tokenizer = plain_tokenizer()
    letters = {tokenizer.encode(chr(c), special_tokens=False)[0] for c in range(33, 127)}
    others = np.array([token not in letters for token in range(260)])
    head = np.array(plain().params["embedding"])
    embedding, head[others] = head.copy(), 0.0
    config = dataclasses.replace(plain().config, tie_embeddings=False)
    return Model(config, plain().params | {"embedding": jnp.asarray(embedding), "head": jnp.asarray(head)}, tokenizer)


@functools.cache
def ascii_text(new_tokens: int) -> str:
    text = generate(ascii_model(), PROMPT, precision=None, max_new_tokens=new_tokens).text
    assert text is not None
    assert text.isascii()
    assert len(text) == new_tokens
    return text


class TestStream:
    def test_pieces_are_the_text_and_come_one_by_one(self) -> None:
        text = stream(ascii_model(), PROMPT, precision=None, max_new_tokens=30)
        assert next(text) == ascii_text(30)[0]
        assert text.result is None
        assert "".join(text) == ascii_text(30)[1:]
        assert text.result is not None
        assert text.result.text == ascii_text(30)
        assert list(text) == []
        assert text.result is not None

    def test_bytes_of_a_character_are_held_together(self) -> None:
        """The random model writes bytes that are mostly not UTF-8: what is shown is what they decode to as a whole."""
        text = stream(plain(), PROMPT, precision=None, max_new_tokens=40)
        assert "".join(text) == text.result.text == plain_tokenizer().decode(text.result.tokens)  # pyright: ignore

    def test_no_part_of_a_stop_string_is_shown(self) -> None:
        whole = ascii_text(30)
        stop = whole[10:14]
        shown = ""
        for piece in stream(ascii_model(), PROMPT, precision=None, max_new_tokens=30, stop=[stop]):
            shown += piece
            assert whole[: whole.index(stop)].startswith(shown)
        assert shown == whole[: whole.index(stop)]

    def test_errors_come_before_the_first_piece(self) -> None:
        with pytest.raises(ValueError, match="the model is quantized: give a precision to read it at, one of 2, 3, 4"):
            stream(quantized(), PROMPT, precision=None)
        with pytest.raises(ValueError, match="the model can be read at 2, 3, 4 bits, but the precision given is 8"):
            stream(quantized(), PROMPT, precision=8)

    def test_a_result_is_not_overwritten(self) -> None:
        def pieces() -> Iterator[str]:
            yield "a"
            return "the result"

        text = TextStream(pieces())  # pyright: ignore
        assert list(text) == ["a"]
        assert list(text) == []
        assert text.result == "the result"


def _spellings(ids: list[int]) -> list[Any]:
    return [ids, np.array(ids), jnp.array(ids)]


class TestPrompts:
    def test_text_is_encoded_with_special_tokens(self) -> None:
        ids = plain_tokenizer().encode("the fox", special_tokens=True)
        by_text = generate(plain(), "the fox", precision=None, max_new_tokens=5)
        assert by_text.tokens == generate(plain(), ids, precision=None, max_new_tokens=5).tokens
        assert by_text.prompt_tokens == len(ids)

    def test_arrays_of_token_ids(self) -> None:
        texts = [generate(plain(), ids, precision=None, max_new_tokens=20).tokens for ids in _spellings(PROMPT)]
        assert texts[0] == texts[1] == texts[2]

    def test_chat(self) -> None:
        tokenizer = dataclasses.replace(plain_tokenizer(), chat_template=CHAT_TEMPLATE)
        model = dataclasses.replace(plain(), tokenizer=tokenizer)
        messages = [{"role": "user", "content": "hi"}]
        ids = tokenizer.encode(tokenizer.render_chat(messages), special_tokens=False)
        expected = generate(model, ids, precision=None, max_new_tokens=5).tokens
        for prompt in ("hi", messages):
            assert generate(model, prompt, precision=None, chat=True, max_new_tokens=5).tokens == expected


class TestCompilation:
    def test_nothing_is_compiled_while_text_is_written(self, caplog: pytest.LogCaptureFixture) -> None:
        # With a cache of another size, so that only the small programs that move arrays about are there already.
        list(stream(plain(), PROMPT, precision=None, max_new_tokens=2))
        text = stream(plain(), PROMPT, **SAMPLED | {"max_new_tokens": 65})
        with jax.log_compiles(), caplog.at_level("DEBUG"):
            list(text)
            assert "Compiling" not in caplog.text
            jax.jit(lambda x: x + 1)(0)
            assert "Compiling" in caplog.text  # it would have been seen

    def test_other_lengths_and_settings_share_programs(self, caplog: pytest.LogCaptureFixture) -> None:
        generate(plain(), PROMPT, **SAMPLED)
        others = {"max_new_tokens": 50, "temperature": 0.7, "top_k": 9, "top_p": 0.5, "min_p": 0.3, "seed": 3}
        with jax.log_compiles(), caplog.at_level("DEBUG"):
            generate(plain(), [1] * 14, **SAMPLED | others)
        assert "Compiling jit(prefill)" not in caplog.text
        assert "Compiling jit(decode)" not in caplog.text

    def test_timings(self) -> None:
        result = generate(plain(), PROMPT, precision=None, max_new_tokens=10)
        assert min(result.compile_s, result.prefill_s, result.decode_s) > 0
        assert result.tokens_per_s == 9 / result.decode_s
        assert generate(plain(), PROMPT, precision=None, max_new_tokens=1).tokens_per_s == 0

    def test_a_slow_reader_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr(generation.time, "perf_counter", lambda: now)
        text = stream(plain(), PROMPT, precision=None, max_new_tokens=5)
        for _ in text:
            now += 1000.0
        assert text.result is not None
        assert text.result.decode_s == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens should be 1 or more, but is 0"),
            ({"max_new_tokens": 252}, "prompt of 5 tokens and 252 new ones exceed the context of 256"),
            ({"prompt": []}, "the prompt is empty"),
            ({"prompt": ""}, "the prompt is empty"),
            ({"prompt": [1, 260]}, r"token ids should lie in \[0, 260\), but the prompt has 1 to 260"),
            ({"prompt": [-1]}, "token ids should lie in"),
            ({"stop": [""]}, "stop should be a list of texts, none of them empty"),
            ({"stop": "abc"}, "stop should be a list of texts"),
            ({"temperature": -1.0}, "temperature should be"),
            ({"seed": 2**64}, "seed should be between 0 and 4294967295"),
            (
                {"precision": 4},
                "the model is not quantized: its precision should be None, but the precision given is 4",
            ),
            ({"prompt": "hi", "chat": True}, "the model has no chat template"),
        ],
    )
    def test_arguments(self, changes: dict[str, Any], complaint: str) -> None:
        arguments = {"prompt": PROMPT, "precision": None} | changes
        for function in (generate, stream):
            with pytest.raises(ValueError, match=complaint):
                function(plain(), arguments["prompt"], **{k: v for k, v in arguments.items() if k != "prompt"})

    @pytest.mark.parametrize(
        ("prompt", "changes", "complaint"),
        [
            ("text", {}, "the model has no tokenizer: give the prompt as token ids"),
            (PROMPT, {"stop": ["x"]}, "stop strings need a tokenizer"),
            ([{"role": "user", "content": "hi"}], {"chat": True}, "the model has no tokenizer"),
        ],
    )
    def test_without_a_tokenizer(self, prompt: Any, changes: dict[str, Any], complaint: str) -> None:
        model = dataclasses.replace(plain(), tokenizer=None)
        with pytest.raises(ValueError, match=complaint):
            generate(model, prompt, precision=None, **changes)

    def test_a_context_that_just_suffices(self) -> None:
        result = generate(plain(), [1] * 250, precision=None, max_new_tokens=6)
        assert result.new_tokens == 6


def test_readable_precisions() -> None:
    assert readable_precisions(quantized()) == (2, 3, 4)
    assert highest_precision(quantized()) == 4
    assert readable_precisions(plain()) == ()
    assert highest_precision(plain()) is None
