"""What people get wrong, and the one line that each mistake is answered with: what was wanted, what came, what to do. Exit status 2."""

import importlib
import json
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest


class Mistake(NamedTuple):
    """A command line, and parts of the answer."""

    command: str
    answer: tuple[str, ...]


def mistake(command: str, *answer: str) -> Mistake:
    """Each part must be in the answer."""
    return Mistake(command, answer)


MISTAKES = [
    # a wrong path
    mistake("anyprec inspect nowhere", "nowhere does not exist"),
    mistake("anyprec generate nowhere --prompt x", "nowhere"),
    mistake("anyprec quantize nowhere out --uniform", "nowhere"),
    mistake("anyprec quantize model out --calibration nowhere.txt", "nowhere.txt"),
    mistake("anyprec evaluate artefact --text nowhere.txt", "nowhere.txt"),
    mistake("anyprec evaluate artefact --text text.txt --reference nowhere", "nowhere"),
    mistake("ginex info nowhere", "nowhere"),
    mistake("ginex plan nowhere --cache 1MiB", "nowhere"),
    mistake("ginex train nowhere --out run", "nowhere"),
    mistake("ginex infer nowhere graph --out predictions.npy", "nowhere"),
    mistake("ginex ingest out --edges nowhere.parquet", "nowhere.parquet"),
    mistake("a3 evaluate --workload babi --data nowhere", "nowhere"),
    mistake("a3 cost --hardware nowhere.toml", "nowhere.toml"),
    # a wrong kind of file
    mistake("anyprec inspect empty", "empty"),
    mistake("anyprec inspect noise.gguf", "noise.gguf", "GGUF"),
    mistake("anyprec inspect pickled", "safetensors"),
    mistake("anyprec inspect foreign", "NoSuchForCausalLM", "LlamaForCausalLM"),
    mistake("anyprec quantize artefact out --uniform", "quantized already"),
    mistake("anyprec evaluate artefact --text noise.gguf", "noise.gguf", "UTF-8"),
    mistake("ginex info artefact", "artefact"),
    mistake("ginex ingest out --edges text.txt", "text.txt"),
    mistake("ginex ingest out --edges noise.npy", "noise.npy"),
    mistake("ginex infer graph graph --out predictions.npy", "graph"),
    mistake("a3 evaluate --workload decode --data text.txt", "text.txt"),
    mistake("a3 cost --hardware text.txt", "text.txt"),
    # a place that is taken
    mistake("anyprec quantize model artefact --uniform", "artefact"),
    mistake("anyprec export artefact model --format huggingface --precision 3", "model", "exists"),
    mistake("ginex generate rmat graph --scale 4 --edge-factor 2", "graph", "exists"),
    # a wrong flag or value
    mistake("anyprec quantise model out", "quantise"),
    mistake("anyprec generate artefact --prompt x --precison 3", "--precison"),
    mistake("anyprec generate artefact --prompt x --precision 9", "9", "2, 3, 4"),
    mistake("anyprec generate model --prompt x --precision 4", "not an any-precision model"),
    mistake("anyprec evaluate artefact --text text.txt --precision 8", "8", "2, 3, 4"),
    mistake("anyprec quantize model out", "--calibration", "--uniform"),
    mistake("anyprec quantize model out --uniform --seed-precision 6 --parent-precision 4", "6", "4"),
    mistake("anyprec quantize model out --uniform --quality best", "calibration"),
    mistake("anyprec generate artefact --prompt x --chat", "chat template"),
    mistake("anyprec generate artefact --prompt x --temperature -1", "temperature"),
    mistake("anyprec generate artefact --prompt x --max-new-tokens 100000", "256"),
    mistake("anyprec export artefact out --format pickle", "pickle", "huggingface"),
    mistake("anyprec export artefact out --format huggingface", "a precision is needed", "2, 3, 4"),
    mistake("ginex plan graph --cache many", "many", "GiB"),
    mistake("ginex plan graph --cache 1MiB --fanouts ten", "ten"),
    mistake("ginex train graph --out run --fanouts 0,10", "0"),
    mistake("ginex train graph --out run --model transformer", "transformer", "sage"),
    mistake("ginex train graph --out run --epochs 0", "epochs"),
    mistake("ginex infer run graph", "--out"),
    mistake("ginex ingest out", "--edges"),
    mistake("ginex generate rmat out --scale 99 --edge-factor 2", "99"),
    mistake("a3 cost --n 320 --M 160 --C 400 --K 15", "C", "400", "320"),
    mistake("a3 cost --n none", "--n", "number"),
    mistake("a3 sweep --task vision --over M=1:2:1", "vision", "bert"),
    mistake("a3 sweep --task bert --over M", "M"),
    mistake("a3 evaluate --workload vision", "vision", "babi"),
    mistake("a3 evaluate --workload babi --M n/0", "n/0"),
    # too little of something
    mistake("ginex train graph --out run --fanouts 5,5 --memory 1MiB", "memory"),
    mistake("anyprec evaluate artefact --text short.txt", "short.txt"),
    mistake("anyprec quantize model out --calibration short.txt", "calibration text", "51,200"),
    mistake("anyprec inspect truncated", "model.safetensors"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, an artefact and a dataset, whole ones and others."""
    from anyprec_jax.checkpoint import save
    from ginex_jax import array_source, build_dataset
    from tests.anyprec_jax.tiny import TEXT, quantized_tiny_model, save_tiny_model

    folder = tmp_path_factory.mktemp("mistakes")
    save_tiny_model(folder / "model")
    save(folder / "artefact", quantized_tiny_model())
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 4)).astype(np.float32)
    splits = {"train": np.arange(100)}
    edges, labels = rng.integers(0, 200, (2, 2_000)), rng.integers(0, 3, 200)
    graph = array_source(*edges, features=features, labels=labels, splits=splits)
    build_dataset(folder / "graph", graph)
    (folder / "text.txt").write_text(40 * TEXT, encoding="utf-8")
    (folder / "short.txt").write_text("a", encoding="utf-8")
    for name in ("noise.gguf", "noise.npy"):
        (folder / name).write_bytes(rng.bytes(4_096))
    (folder / "empty").mkdir()
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    for name in ("pickled", "foreign", "truncated"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    foreign = config | {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"}
    (folder / "foreign" / "config.json").write_text(json.dumps(foreign), encoding="utf-8")
    whole = (folder / "model" / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.command)
def test_it_is_answered_in_one_line(
    case: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    name, *arguments = shlex.split(case.command)
    status = importlib.import_module(f"{name}_jax.cli.app").main(arguments)
    answer = capsys.readouterr().err
    assert status == 2
    for part in case.answer:
        assert part in answer
    assert len(answer.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before  # nothing half-written
