"""A3 in a small random model: its probabilities against the compiled decoder with A3's JAX functions in the place of attention."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax import sort_keys, window_rows, windowed_attention
from a3_jax.cli import main as a3
from anyprec_jax import Model, forward, load, save
from examples import a3_in_anyprec
from examples.a3_in_anyprec import main, read_contexts
from tests.anyprec_jax.tiny import quantized_tiny_model, save_tiny_model

LENGTH, STEPS = 24, 4
TEXT = "The quick brown fox jumps over the lazy dog. " * 3
OPTIONS = ["--length", str(LENGTH), "--steps", str(STEPS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a3")
    save_tiny_model(folder / "tiny")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def a3_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """M = n/2, T = 5 % with the first row exact at the last steps of the text, and everything elsewhere: all in JAX, query by query."""
    group = query.shape[1] // key.shape[1]

    def attend(query: jax.Array, mask: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        is_step = jnp.sum(mask) > LENGTH - STEPS
        output, _ = windowed_attention(
            query,
            key,
            value,
            sort_keys(key),
            exact_rows=window_rows(mask, window=jnp.where(is_step, 0, LENGTH), sinks=1),
            num_iterations=0.5,
            threshold_percent=5,
            mask=mask,
            implementation="sequential",  # compiles in the least time
        )
        return output

    of_head = jax.vmap(attend, (0, 0, None, None))
    of_heads = jax.vmap(of_head, (1, None, 1, 1), 1)
    return of_heads(query, mask, jnp.repeat(key, group, axis=1), jnp.repeat(value, group, axis=1))


def next_tokens(model: Model, tokens: np.ndarray, attention) -> np.ndarray:
    """Log-probabilities at the steps, of whole sequences."""
    logits = forward(model.params, tokens[None, :-1], model.config, precision=None, attention=attention)
    assert isinstance(logits, jax.Array)
    return np.asarray(jax.nn.log_softmax(logits[0, -STEPS:]), np.float64)


def test_probabilities_are_those_of_the_compiled_decoder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        a3_in_anyprec, "PIECE", 8
    )  # the prompt of 20 tokens is read in three pieces, the last of them padded
    files = ["--text", str(folder / "text.txt"), "--contexts", "2"]
    main([str(folder / "tiny"), *files, *OPTIONS, "--M", "n/2", "--T", "5", "--sinks", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    model = load(folder / "tiny")
    contexts = read_contexts(model, [folder / "text.txt"], length=LENGTH, count=2)
    assert [len(context) for context in contexts] == [LENGTH + 1] * 2
    nll, kl = np.zeros((2, 2, STEPS)), np.zeros((2, STEPS))
    for number, context in enumerate(contexts):
        exact, approximate = (next_tokens(model, context, attention) for attention in (None, a3_attention))
        targets = context[-STEPS:]
        nll[:, number] = [-found[np.arange(STEPS), targets] for found in (exact, approximate)]
        kl[number] = (np.exp(exact) * (exact - approximate)).sum(1)
    for row, expected in zip(report["settings"], np.exp(nll.mean((1, 2))), strict=True):
        assert row["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert report["settings"][1]["kl"] == pytest.approx(kl.mean(), rel=1e-2)
    assert kl.mean() > 1e-4
    assert report["settings"][0]["queries"] == 2 * 3 * 6 * STEPS


def test_a_quantized_model_and_its_arrays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "artefact", quantized_tiny_model())
    arrays = folder / "arrays"
    options = ["--text", str(folder / "text.txt"), *OPTIONS, "--precision", "3", "--save-arrays", str(arrays)]
    main([str(folder / "artefact"), *options])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "setting",
        "exact",
        "conservative",
        "conservative, first row exact",
        "aggressive",
        "aggressive, first row exact",
    ]
    assert [file.name for file in arrays.iterdir()] == ["context-0.npz"]
    assert a3(["evaluate", "--workload", "decode", "--data", str(arrays), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["texts"][0] | {"file": ""} == {
        "file": "",
        "layers": 3,
        "heads": 6,
        "kv_heads": 2,
        "rows": LENGTH,
        "steps": STEPS,
        "head_dim": 8,
    }
    assert report["settings"][0]["mass"] == pytest.approx(1)
    assert "KL" in lines[0].split()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--contexts", "9"], "9 x 25 tokens are wanted, and there are 5 such pieces"),
        (["--contexts", "0"], "--contexts should be at least 1"),
        (["--steps", "24"], "--steps should be from 1 to less than --length 24, got 24"),
        (["--length", "500"], "the model reads 256 tokens at most, got 500"),
        (["--M", "half"], "a count is a number"),
        (["--precision", "3"], "not an any-precision model"),
        (["--text", "/nowhere"], "/nowhere"),
    ],
)
def test_what_a_user_can_mend(
    folder: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(folder / "tiny"), "--text", str(folder / "text.txt"), *OPTIONS, *options])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert not printed.out
