"""Models split over devices compute what they compute on one, which is the oracle; eight simulated devices, and two processes.

Both are programs of their own (`split_process`), as the number of devices is fixed when JAX starts.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from anyprec_jax import load, save
from anyprec_jax.checkpoint.tree import TreeReader
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.model_quantization import Calibration, quantize_model
from anyprec_jax.models.decoder import init_cache
from anyprec_jax.models.layerwise import continue_layerwise
from anyprec_jax.processes import wait_for
from anyprec_jax.sharding import shard, tensor_parallel_mesh
from tests.anyprec_jax.split_models import CASES, QUANTIZED, random_model
from tests.anyprec_jax.tiny import TEXT, quantized_tiny_model, save_tiny_model

ROOT = Path(__file__).parents[2]
SIMULATED = [name for name in CASES if name != "wide"]
REORDERED = 2e-5  # of the largest logit: sums of float32 in another order

Results = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact for every case."""
    folder = tmp_path_factory.mktemp("split")
    for name in CASES:
        save(folder / name, random_model(name))
    save_tiny_model(folder / "plain")
    (folder / "text.txt").write_text(TEXT * 2, encoding="utf-8")
    return folder


def run(commands: Sequence[Sequence[str]], num_devices: int) -> None:
    environment = {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}",
    }
    program = [sys.executable, "-m", "tests.anyprec_jax.split_process"]
    processes = [
        subprocess.Popen([*program, *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def simulated(folder: Path) -> Results:
    """What eight devices make of the cases, in exact arithmetic."""
    run([[str(folder / "simulated.npz"), str(folder), ",".join(SIMULATED)]], 8)
    return np.load(folder / "simulated.npz")


@pytest.fixture(scope="module")
def processes(folder: Path) -> list[Results]:
    """What two processes, of a device each, make of one of them with the native product."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{found.getsockname()[1]}"
    files = [str(folder / f"process{number}.npz") for number in range(2)]
    run([[file, str(folder), str(i), "2", coordinator] for i, file in enumerate(files)], 1)
    return [np.load(file) for file in files]


@pytest.mark.parametrize("name", [*SIMULATED, "experts by token"])
def test_devices_compute_what_one_does(name: str, simulated: Results) -> None:
    got, want = ({key: simulated[f"{name} {who} {key}"] for key in ("tokens", "logits")} for who in ("devices", "one"))
    assert got["tokens"].tolist() == want["tokens"].tolist()
    assert np.abs(got["logits"] - want["logits"]).max() <= REORDERED * np.abs(want["logits"]).max()


@pytest.mark.parametrize("name", SIMULATED)
def test_a_layer_is_summed_over_devices_twice(name: str, simulated: Results) -> None:
    assert tuple(simulated[f"{name} devices collectives"]) == CASES[name][2]
    assert tuple(simulated[f"{name} one collectives"]) == (0, 0)


def test_every_device_has_its_part_of_the_planes(simulated: Results) -> None:
    model = random_model("llama")
    planes = sum(leaf.bitplanes.nbytes for name, leaf in model.params["layers"].items() if name.endswith("_proj"))
    assert simulated["llama planes"].tolist() == [planes // 4] * 4


def test_processes_compute_what_one_does(processes: list[Results]) -> None:
    want = processes[0]
    for got in processes:
        assert got["devices tokens"].tolist() == want["one tokens"].tolist()
        # Of dequantized weights: nothing is rounded but sums.
        np.testing.assert_allclose(got["devices perplexities"], want["one perplexities"], rtol=REORDERED)


def test_a_process_reads_its_own_half(folder: Path, processes: list[Results]) -> None:
    stored = sum(file.stat().st_size for file in (folder / "wide").rglob("*") if file.is_file())
    # Codebooks of o_proj and down_proj are whole on every device, as are norms and small arrays.
    for results in processes:
        assert 0.45 * stored < results["bytes"] < 0.56 * stored


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.usefixtures("quick_compilation", "processes")
def test_processes_quantize_what_one_does(name: str, folder: Path, tmp_path: Path) -> None:
    settings, config = QUANTIZED[name], QuantizeConfig(seed_precision=2, parent_precision=3)
    calibration = None if settings is None else Calibration(text=folder / "text.txt", **settings)
    quantize_model(folder / "plain", tmp_path / "alone", config, calibration=calibration, quality="fast")
    jax.tree.map(np.testing.assert_array_equal, load(folder / name).params, load(tmp_path / "alone").params)
    assert not list(folder.glob(".*"))


def test_who_waits_for_a_process_that_failed_is_told(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    wait_for([tmp_path / "there"], tmp_path / "job")
    with pytest.raises(ChildProcessError, match="job is gone: another process has failed"):
        wait_for([tmp_path / "there", tmp_path / "missing"], tmp_path / "job")


def test_a_model_on_one_device_of_a_mesh_can_be_saved(tmp_path: Path) -> None:
    model = quantized_tiny_model()
    save(tmp_path / "split", shard(model, tensor_parallel_mesh(1)))
    again = load(tmp_path / "split")
    save(tmp_path / "whole", model)
    jax.tree.map(np.testing.assert_array_equal, again.params, load(tmp_path / "whole").params)


def test_what_cannot_be_split_is_said(tmp_path: Path) -> None:
    model, here = quantized_tiny_model(), len(jax.devices())
    with pytest.raises(ValueError, match=f"1 to {here} devices.*got {here + 1}"):
        tensor_parallel_mesh(here + 1)
    other = Mesh(np.array(jax.devices()[:1]), ("data",))
    save(tmp_path / "artefact", model)
    for attempt in (lambda: shard(model, other), lambda: load(tmp_path / "artefact", mesh=other)):
        with pytest.raises(ValueError, match=r"axis 'model'.*got \('data',\)"):
            attempt()
    split = shard(model, tensor_parallel_mesh(1))
    with pytest.raises(ValueError, match="already"):
        shard(split, tensor_parallel_mesh(1))
    cache = init_cache(split.config, batch=1, length=8, params=split.params)
    with pytest.raises(ValueError, match="without a mesh"):
        continue_layerwise(
            split.params,
            jnp.array([1]),
            split.config,
            precision=2,
            cache=cache,
            attention=lambda layer, query, *_: query,
        )


def test_a_codebook_that_is_read_in_parts_must_be_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "artefact", quantized_tiny_model())
    read = TreeReader.read_part
    monkeypatch.setattr(
        TreeReader,
        "read_part",
        lambda self, name, index: (
            read(self, name, index) * (np.float16(np.nan) if "codebooks" in name else np.uint32(1))
        ),
    )
    with pytest.raises(ValueError, match=r"layers/.*/codebooks/2 is damaged: codebooks should be finite"):
        load(tmp_path / "artefact", mesh=tensor_parallel_mesh(1))
