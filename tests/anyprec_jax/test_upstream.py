"""Checkpoints of the paper's authors, written slowly and by PyTorch itself; and ours, written for them."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import load, save, upstream
from anyprec_jax.checkpoint.formats import export, open_source
from anyprec_jax.checkpoint.upstream_layout import from_upstream
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.fusion import unfused
from anyprec_jax.models.model import with_affine_head
from tests.anyprec_jax import oracles_upstream as oracle
from tests.anyprec_jax.tiny import quantized_tiny_model

torch = pytest.importorskip("torch", reason="the files are PyTorch's own: install the extra 'parity'")

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALIGNED: dict[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}


def document(**changes: Any) -> dict[str, Any]:
    return oracle.tiny_document(**changes)


@pytest.mark.parametrize("k", [32, 64, 96, 1024, 1056, 2560])
@pytest.mark.parametrize("n", [1, 5, 64])
def test_codes_and_codebooks_come_bit_for_bit(k: int, n: int, tmp_path: Path) -> None:
    settings = document(hidden_size=k, intermediate_size=n)
    tensors, meant = oracle.random_checkpoint(settings, seed=k + n)
    model = load(oracle.save_with_torch(tmp_path / "theirs", settings, tensors))
    layers = unfused(model.params["layers"])
    for module, (codes, books) in meant.items():
        _, _, layer, _, name = module.split(".")
        matrix = layers[name]
        assert matrix.shape == (2, n, k)
        np.testing.assert_array_equal(oracle.natural_codes(np.asarray(matrix.bitplanes)[int(layer)], k), codes)
        assert sorted(matrix.codebooks) == [3, 4, 5]
        for w, book in books.items():
            np.testing.assert_array_equal(
                np.asarray(matrix.codebooks[w])[int(layer)].view(np.uint16), book.view(np.uint16)
            )
    np.testing.assert_array_equal(model.params["embedding"], tensors["model.embed_tokens.weight"].astype(np.float32))
    down = np.asarray(layers["down_proj"])[1]
    np.testing.assert_array_equal(down, tensors["model.layers.1.mlp.down_proj.weight"].astype(np.float32))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.save_with_torch(
        tmp_path_factory.mktemp("upstream") / "theirs", document(), oracle.random_checkpoint(document())[0]
    )


def test_some_precisions(theirs: Path) -> None:
    whole, part = load(theirs), load(theirs, precisions=[4])
    matrix, stack = part.params["layers"]["gate_up_proj"], whole.params["layers"]["gate_up_proj"]
    assert matrix.precisions == (4,) and part.tokenizer is None
    np.testing.assert_array_equal(matrix.bitplanes, stack.bitplanes[:, :4])
    np.testing.assert_array_equal(matrix.codebooks[4], stack.codebooks[4])
    with pytest.raises(ValueError, match="precision 6 is not in .*, which holds 3, 4, 5"):
        load(theirs, precisions=[6])


def test_logits_are_those_of_the_dense_weights(theirs: Path) -> None:
    """Upstream's own check of a packed model: look every code up and run the plain one."""
    tensors, meant = oracle.random_checkpoint(document())
    for module, (codes, books) in meant.items():
        tensors[f"{module}.weight"] = np.take_along_axis(books[4], (codes >> 1).astype(np.int64), axis=1)
    dense = {name: values for name, values in tensors.items() if "qweight" not in name and ".lut" not in name}
    model, tokens = load(theirs, precisions=[4]), jnp.arange(9, dtype=jnp.int32)[None]
    got = forward(model.params, tokens, model.config, precision=4)

    plain = theirs.parent / "plain"
    plain.mkdir(exist_ok=True)
    (plain / "config.json").write_text(json.dumps({k: v for k, v in document().items() if k != "anyprec"}))
    safetensors.numpy.save_file(dense, plain / "model.safetensors")
    expected = load(plain)
    want = forward(expected.params, tokens, expected.config, precision=None)
    np.testing.assert_allclose(got, want, atol=1e-3 * float(np.abs(want).max()))


def test_safetensors_hold_the_same(theirs: Path, tmp_path: Path) -> None:
    tensors, _ = oracle.random_checkpoint(document())
    names = list(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        safetensors.numpy.save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(document()))
    assert_same(load(tmp_path), load(theirs))


def assert_same(model: Any, other: Any) -> None:
    assert model.config == other.config
    leaves, others = jax.tree.leaves(model.params), jax.tree.leaves(other.params)
    for a, b in zip(leaves, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_into_an_artefact_and_back(theirs: Path, tmp_path: Path) -> None:
    export(theirs, tmp_path / "artefact", "artefact")
    assert_same(load(tmp_path / "artefact"), load(theirs))
    export(tmp_path / "artefact", tmp_path / "back", "upstream")
    assert_same(load(tmp_path / "back"), load(theirs))
    before, after = (torch.load(p / "pytorch_model.bin", weights_only=True) for p in (theirs, tmp_path / "back"))
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    written, original = (json.loads((p / "config.json").read_text()) for p in (tmp_path / "back", theirs))
    assert written["anyprec"] == original["anyprec"]


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "attention_bias": True}])
def test_ours_for_them(changes: dict[str, Any], tmp_path: Path) -> None:
    model = with_affine_head(quantized_tiny_model(**ALIGNED, **changes))
    save(tmp_path / "ours", model)
    export(tmp_path / "ours", tmp_path / "theirs", "upstream")

    state = torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True)
    entry = json.loads((tmp_path / "theirs" / "config.json").read_text())["anyprec"]
    assert (entry["seed_precision"], entry["parent_precision"], entry["group_count"]) == (2, 4, 1)
    assert entry["arch_config"]["model_name"] == "model" and entry["arch_config"]["layers_name"] == "layers"
    assert [name.rpartition(".")[2] for name in entry["arch_config"]["module_names"]] == list(LINEARS)
    for module in entry["arch_config"]["module_names"]:
        stack: AnyPrecArray = model.params["layers"][module.rpartition(".")[2]]
        for layer in range(3):
            name = f"model.layers.{layer}.{module}"
            codes = oracle.natural_codes(np.asarray(stack.bitplanes)[layer], stack.k)
            np.testing.assert_array_equal(state[f"{name}.qweight"].numpy(), oracle.qweight(codes, 4))
            for w in (2, 3, 4):
                np.testing.assert_array_equal(state[f"{name}.lut{w}"].numpy(), np.asarray(stack.codebooks[w])[layer])
            assert f"{name}.weight" not in state

    # What comes back is the same, but for the affine rows, which are plain and stand for the same weights.
    back, source = load(tmp_path / "theirs"), load(tmp_path / "ours")
    for name, leaf in source.params["layers"].items():
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(back.params["layers"][name]), strict=True):
            np.testing.assert_array_equal(a, b)
    head = source.params["embedding"]
    weights = np.asarray(head.codes, np.float32) * np.asarray(head.scale)[:, None] + np.asarray(head.offset)[:, None]
    np.testing.assert_array_equal(back.params["embedding"], weights)
    assert back.tokenizer is not None


def test_what_the_layout_cannot_hold(tmp_path: Path) -> None:
    save(tmp_path / "narrow", quantized_tiny_model())  # rows of 48 and 72
    with pytest.raises(ValueError, match=r"multiples of 32, and layers/\w+ has k = (48|72)"):
        export(tmp_path / "narrow", tmp_path / "out", "upstream")
    assert not (tmp_path / "out").exists()


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        change(settings)
        (folder / "config.json").write_text(json.dumps(settings))

    return edit


def swapped(change: Callable[[OrderedDict], object]) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin")
        change(state)
        torch.save(state, folder / "pytorch_model.bin")

    return swap


def unpack(state: OrderedDict) -> None:
    for name in [name for name in state if name.rpartition(".")[2] in ("qweight", "lut3", "lut4", "lut5")]:
        del state[name]


GATE = "model.layers.1.mlp.gate_proj"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda p: (p / "pytorch_model.bin").unlink(), "has no weights"),
    "an architecture": (edited(lambda d: d.update(architectures=["BertModel"], model_type="bert")), "LlamaForCausalLM"),
    "no seed": (edited(lambda d: d["anyprec"].pop("seed_precision")), "seed_precision None"),
    "parent 9": (edited(lambda d: d["anyprec"].update(parent_precision=9)), "parent_precision 9"),
    "groups": (edited(lambda d: d["anyprec"].update(group_count=4)), "group_count 4 is not supported"),
    "no entry": (edited(lambda d: d.update(anyprec=[])), "should be an object"),
    "more layers": (edited(lambda d: d.update(num_hidden_layers=3)), "lacks the tensor model.layers.2"),
    "fewer layers": (edited(lambda d: d.update(num_hidden_layers=1)), "does not call for"),
    "a billion layers": (edited(lambda d: d.update(num_hidden_layers=10**9)), "lacks the tensor model.layers.2"),
    "another width": (edited(lambda d: d.update(intermediate_size=64)), "has shape"),
    "rows of 40": (edited(lambda d: d.update(hidden_size=40)), "has shape|multiples of 32"),
    "another parent": (edited(lambda d: d["anyprec"].update(parent_precision=4)), "has shape|does not call for"),
    "no planes": (swapped(lambda s: s.pop(f"{GATE}.qweight")), f"lacks the tensor {GATE}.qweight"),
    "no codebook": (swapped(lambda s: s.pop(f"{GATE}.lut4")), f"lacks the tensor {GATE}.lut4"),
    "one tensor more": (swapped(lambda s: s.update(x=torch.ones(2))), "holds x, which"),
    "planes of floats": (swapped(lambda s: s.update({f"{GATE}.qweight": s[f"{GATE}.qweight"].float()})), "is float32, not int32"),
    "codebooks of floats": (swapped(lambda s: s.update({f"{GATE}.lut4": s[f"{GATE}.lut4"].float()})), "not float16"),
    "a NaN": (swapped(lambda s: s[f"{GATE}.lut4"].fill_(torch.nan)), f"{GATE}: codebook 4 must be finite"),
    "nothing packed": (swapped(unpack), "lacks the tensor model.layers.0.mlp.gate_proj.weight"),
    "cut short": (lambda p: (p / "pytorch_model.bin").write_bytes((p / "pytorch_model.bin").read_bytes()[:3000]), "cut short"),
    "code": (lambda p: torch.save(torch.nn.Linear(2, 2), p / "pytorch_model.bin"), "Linear', which is not allowed"),
    "config in pieces": (lambda p: (p / "config.json").write_text('{"anyprec": '), "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    folder = oracle.save_with_torch(tmp_path / "theirs", document(), oracle.random_checkpoint(document())[0])
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value) and "theirs" in str(raised.value)


def test_a_tied_head_and_derived_tensors_are_passed_over(tmp_path: Path) -> None:
    settings = document(tie_word_embeddings=True)
    tensors, _ = oracle.random_checkpoint(settings)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    folder = oracle.save_with_torch(tmp_path / "theirs", settings, tensors)
    assert "head" not in load(folder).params


def test_a_source_is_read_a_matrix_at_a_time(theirs: Path) -> None:
    source = open_source(theirs)
    assert source.format == "upstream" and source.precisions == (3, 4, 5)
    assert set(source.matrices) == {"layers/gate_proj", "layers/up_proj"}
    matrix = source.read("layers/up_proj", 1)
    assert isinstance(matrix, AnyPrecArray) and matrix.shape == (32, 64)
    stored = torch.load(theirs / "pytorch_model.bin")["model.layers.1.mlp.up_proj.qweight"].numpy()
    np.testing.assert_array_equal(matrix.bitplanes, from_upstream(stored))
    assert upstream.is_upstream(theirs) and not upstream.is_upstream(theirs.parent)
