import contextlib
import io
import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from anyprec_jax import cli
from anyprec_jax.allocation import allocate
from anyprec_jax.checkpoint import load
from anyprec_jax.checkpoint.formats import export
from anyprec_jax.cli.progress import progress_bars
from anyprec_jax.evaluate import perplexity
from bandwise_commands import interrupts
from tests.anyprec_jax import gguf_files
from tests.anyprec_jax.tiny import TEXT, save_tiny_model

COMMANDS = ("quantize", "inspect", "evaluate", "generate", "export")


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def anyprec(*arguments: object) -> Done:
    """Runs the command as the entry point would."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = cli.main([str(argument) for argument in arguments])
    return Done(status, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, a text, and the artefact that `quantize` makes of them."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny_model(folder / "tiny")
    (folder / "text.txt").write_text(TEXT * 5, encoding="utf-8")
    done = anyprec(
        "quantize", folder / "tiny", folder / "artefact", "--calibration", folder / "text.txt",
        "--num-sequences", 3, "--sequence-length", 32, "--seed-precision", 3, "--parent-precision", 6,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return folder


def test_inspect(folder: Path) -> None:
    shown = anyprec("inspect", folder / "artefact")
    assert shown.exit_code == 0
    assert "q_proj" in shown.stdout and "resident" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 100
    assert [line.split() for line in shown.stdout.splitlines() if line.startswith("embedding ")] == [
        ["embedding", "260", "48", *["9.33"] * 5]  # 8 bits a code, and 64 for the scale and offset of a row of 48
    ]

    assert "quality best, calibrated on 3 sequences of 32 tokens of text.txt" in shown.stdout
    report = json.loads(anyprec("inspect", folder / "artefact", "--json").stdout)
    assert report["provenance"]["quantization"]["quality"] == "best"
    assert report["precisions"] == [3, 4, 5, 6]
    assert set(report["matrices"]["layers/q_proj"]["bits_per_weight"]["read"]) == {"3", "4", "5", "6"}
    assert all(len(array["sha256"]) == 64 for array in report["arrays"].values())
    assert report["affine"]["embedding"]["bytes"] == report["bytes"]["affine"] == 260 * (48 + 8)
    assert report["affine_weights"] == 260 * 48


def test_inspect_a_plain_model(folder: Path) -> None:
    shown = anyprec("inspect", folder / "tiny").stdout.splitlines()
    parameters = json.loads(anyprec("inspect", folder / "tiny", "--json").stdout)["parameters"]
    assert (
        shown[0] == f"huggingface, family llama, 3 layers, {parameters:,} parameters, precisions none (not quantized)"
    )
    assert shown[1] == f"in memory: {4 * parameters / 1e6:,.1f} MB in float32"


def test_evaluate(folder: Path) -> None:
    arguments = (
        "evaluate",
        folder / "artefact",
        "--text",
        folder / "text.txt",
        "--max-tokens",
        100,
        "--sequence-length",
        40,
    )
    done = anyprec(*arguments, "--precision", 3, "--precision", 5, "--reference", folder / "tiny", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["tokens"] == 100
    assert [row["precision"] for row in report["results"]] == ["reference", 3, 5]
    fields = {"precision", "perplexity", "kl", "bits_per_weight", "mean_precision", "top1"}
    assert all(set(row) == fields for row in report["results"])
    model = load(folder / "artefact")
    assert model.tokenizer is not None
    tokens = model.tokenizer.encode((folder / "text.txt").read_text(), special_tokens=False)[:100]
    for row in report["results"][1:]:
        expected = perplexity(model, tokens, precision=row["precision"], sequence_length=40)
        assert row["perplexity"] == pytest.approx(expected, rel=1e-6)
        assert row["kl"] > 0
        assert 0 < row["top1"] <= 1
        read = json.loads(anyprec("inspect", folder / "artefact", "--json").stdout)["bits_per_weight"]["read"]
        assert row["bits_per_weight"] == pytest.approx(read[str(row["precision"])], rel=1e-12)

    every = json.loads(anyprec(*arguments, "--json").stdout)["results"]
    assert [row["precision"] for row in every] == [3, 4, 5, 6]
    assert all(row["kl"] is None for row in every)
    assert "perplexity" in anyprec(*arguments).stdout


def test_fractional_precisions(folder: Path, tmp_path: Path) -> None:
    """On every command: what the errors in the artefact say, or that there are none."""
    assert "fractional precisions, 3.5 say: yes" in anyprec("inspect", folder / "artefact").stdout
    text = ("--text", folder / "text.txt", "--max-tokens", 40, "--sequence-length", 40)
    done = anyprec("evaluate", folder / "artefact", *text, "--precision", "3,3.5", "--precision", 4, "--json")
    three, between, four = json.loads(done.stdout)["results"]
    assert [row["precision"] for row in (three, between, four)] == [3, 3.5, 4]
    assert three["bits_per_weight"] < between["bits_per_weight"] < four["bits_per_weight"]
    assert 3.4 < between["mean_precision"] <= 3.5
    model = load(folder / "artefact")
    assert model.tokenizer is not None
    tokens = model.tokenizer.encode((folder / "text.txt").read_text(), special_tokens=False)[:40]
    expected = perplexity(model, tokens, precision=allocate(model, 3.5), sequence_length=40)
    assert between["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert "3.5 (average 3.4" in anyprec("evaluate", folder / "artefact", *text, "--precision", 3.5).stdout

    written = anyprec("generate", folder / "artefact", "--prompt", "The", "--precision", 3.5, "--max-new-tokens", 4)
    assert written.exit_code == 0, written.stderr
    assert anyprec("export", folder / "artefact", tmp_path / "dense", "--precision", 3.5).exit_code == 0

    assert anyprec("quantize", folder / "tiny", tmp_path / "uniform", "--uniform").exit_code == 0
    assert "fractional precisions: no" in anyprec("inspect", tmp_path / "uniform").stdout
    refused = anyprec("generate", tmp_path / "uniform", "--prompt", "a", "--precision", 3.5)
    assert refused.exit_code == 2
    assert "quantize it again with a calibration text, or choose a whole number of bits" in refused.stderr


def test_evaluate_an_unquantized_model(folder: Path) -> None:
    done = anyprec("evaluate", folder / "tiny", "--text", folder / "text.txt", "--sequence-length", 40, "--json")
    (row,) = json.loads(done.stdout)["results"]
    assert row["precision"] is None and row["perplexity"] > 1


def test_generate(folder: Path) -> None:
    arguments = ("generate", folder / "artefact", "--prompt", "The quick", "--precision", 4, "--max-new-tokens", 12)
    streamed = anyprec(*arguments)
    assert streamed.exit_code == 0, streamed.stderr
    report = json.loads(anyprec(*arguments, "--json").stdout)
    assert streamed.stdout == report["text"] + "\n"
    assert report["new_tokens"] == len(report["tokens"]) <= 12

    sampled = [anyprec(*arguments, "--temperature", 1.5, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_export_gives_the_same_perplexity(folder: Path) -> None:
    done = anyprec("export", folder / "artefact", folder / "dense", "--format", "huggingface", "--precision", 4)
    assert done.exit_code == 0, done.stderr
    arguments = ("--text", folder / "text.txt", "--sequence-length", 40, "--json")
    (exported,) = json.loads(anyprec("evaluate", folder / "dense", *arguments).stdout)["results"]
    (read,) = json.loads(anyprec("evaluate", folder / "artefact", "--precision", 4, *arguments).stdout)["results"]
    assert exported["perplexity"] == pytest.approx(read["perplexity"], rel=1e-4)


@pytest.fixture(scope="module")
def broken(folder: Path) -> Path:
    """Inputs that are not what they seem."""
    inputs = folder / "broken"
    inputs.mkdir()
    (inputs / "prose.txt").write_text("It was a dark and stormy night.")
    (inputs / "binary.txt").write_bytes(b"\xff\xfe\x00\x81" * 100)
    (inputs / "truncated.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x10")
    (inputs / "empty").mkdir()
    (inputs / "taken").mkdir()
    (inputs / "taken" / "thesis.tex").write_text("precious")
    save_tiny_model(inputs / "nan")
    tensors = safetensors.numpy.load_file(inputs / "nan" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].copy()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    safetensors.numpy.save_file(tensors, inputs / "nan" / "model.safetensors")
    break_copies(inputs)
    return inputs


def break_copies(inputs: Path) -> None:
    """Copies of a sound model, each wrong in one way."""
    for name in ("bert", "shards", "wide", "pickled", "hostile", "mute"):
        save_tiny_model(inputs / name)
    export(inputs / "wide", inputs / "flipped", "huggingface")
    config = inputs / "bert" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "BertModel").replace('"llama"', '"bert"'))
    weights = safetensors.numpy.load_file(inputs / "shards" / "model.safetensors")
    shards = {"model-1.safetensors": list(weights)[::2], "model-2.safetensors": list(weights)[1::2]}
    (inputs / "shards" / "model.safetensors").unlink()
    safetensors.numpy.save_file(
        {n: weights[n] for n in shards["model-1.safetensors"]}, inputs / "shards" / "model-1.safetensors"
    )
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (inputs / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    weights["model.norm.weight"] = np.ones(49, np.float32)
    safetensors.numpy.save_file(weights, inputs / "wide" / "model.safetensors")
    (inputs / "pickled" / "model.safetensors").rename(inputs / "pickled" / "pytorch_model.bin")
    hostile = inputs / "hostile"
    document = json.loads((hostile / "config.json").read_text()) | {
        "anyprec": {"seed_precision": 3, "parent_precision": 4}
    }
    (hostile / "config.json").write_text(json.dumps(document))
    with zipfile.ZipFile(hostile / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    flipped = bytearray((inputs / "flipped" / "model.safetensors").read_bytes())
    flipped[-1] ^= 1
    (inputs / "flipped" / "model.safetensors").write_bytes(flipped)
    (inputs / "mute" / "tokenizer.json").unlink()
    gguf_files.tiny(inputs / "type.gguf")
    gguf_files.patched(inputs / "type.gguf", b"output_norm.weight", 4 + 8, (222).to_bytes(4, "little"))


MISTAKES = {
    "no model": (("quantize", "{in}/nowhere", "{out}", "--uniform"), "nowhere does not exist"),
    "prose as model": (("quantize", "{in}/prose.txt", "{out}", "--uniform"), "is not a model"),
    "an empty folder as model": (("quantize", "{in}/empty", "{out}", "--uniform"), "is not a model"),
    "truncated GGUF": (("quantize", "{in}/truncated.gguf", "{out}", "--uniform"), "truncated.gguf"),
    "a NaN": (("quantize", "{in}/nan", "{out}", "--uniform"), "up_proj of layer 1 is nan at row 3, column 5"),
    "precision 9": (("quantize", "{tiny}", "{out}", "--uniform", "--parent-precision", "9"), "parent_precision=9"),
    "seed above parent": (
        ("quantize", "{tiny}", "{out}", "--uniform", "--seed-precision", "5", "--parent-precision", "4"),
        "seed",
    ),
    "no calibration": (("quantize", "{tiny}", "{out}"), "either --calibration FILE or --uniform"),
    "best without calibration": (
        ("quantize", "{tiny}", "{out}", "--uniform", "--quality", "best"),
        "best quality needs a calibration text",
    ),
    "quality good": (("quantize", "{tiny}", "{out}", "--uniform", "--quality", "good"), "--quality"),
    "two calibrations": (("quantize", "{tiny}", "{out}", "--uniform", "--calibration", "{text}"), "either"),
    "calibration missing": (("quantize", "{tiny}", "{out}", "--calibration", "{in}/nowhere"), "nowhere: No such file"),
    "calibration a folder": (("quantize", "{tiny}", "{out}", "--calibration", "{in}/empty"), "Is a directory"),
    "calibration binary": (
        ("quantize", "{tiny}", "{out}", "--calibration", "{in}/binary.txt"),
        "binary.txt is not UTF-8",
    ),
    "too little text": (("quantize", "{tiny}", "{out}", "--calibration", "{text}"), "need 51,200"),
    "head of 4 bits": (("quantize", "{tiny}", "{out}", "--uniform", "--head-precision", "4"), "--head-precision"),
    "out taken": (("quantize", "{tiny}", "{in}/taken", "--uniform"), "taken already exists"),
    "out is a file": (("quantize", "{tiny}", "{in}/prose.txt", "--uniform"), "prose.txt already exists"),
    "out below a file": (("quantize", "{tiny}", "{in}/prose.txt/out", "--uniform"), "Not a directory"),
    "artefact again": (("quantize", "{artefact}", "{out}", "--uniform"), "quantized already"),
    "inspect prose": (("inspect", "{in}/prose.txt"), "is not a model"),
    "inspect nothing": (("inspect", "{in}/nowhere"), "nowhere does not exist"),
    "inspect another architecture": (
        ("inspect", "{in}/bert"),
        "BertModel (model_type bert) is not supported; supported are",
    ),
    "another architecture": (("quantize", "{in}/bert", "{out}", "--uniform"), "supported are LlamaForCausalLM"),
    "a missing shard": (("export", "{in}/shards", "{out}"), "model-2.safetensors is missing"),
    "a shard of another shape": (
        ("inspect", "{in}/wide"),
        "model.norm.weight has shape (49,), config.json calls for (48,)",
    ),
    "weights in a pickle": (
        ("inspect", "{in}/pickled"),
        "pickles can run code and are not read; convert them to safetensors",
    ),
    "code in a pickle": (("inspect", "{in}/hostile"), "names 'posix.system', which is not allowed"),
    "unknown tensor type": (("inspect", "{in}/type.gguf"), "is of type 222, which is not known"),
    "a checksum": (("export", "{in}/flipped", "{out}"), "does not match its checksum in export.json"),
    "generate without tokenizer": (("generate", "{in}/mute", "--prompt", "a"), "tokenizer"),
    "evaluate without tokenizer": (
        ("evaluate", "{in}/mute", "--text", "{text}"),
        "has no tokenizer, and scoring text needs one",
    ),
    "calibrate without tokenizer": (("quantize", "{in}/mute", "{out}", "--calibration", "{text}"), "needs a tokenizer"),
    "export without precision": (("export", "{artefact}", "{out}"), "a precision is needed for"),
    "export codes of a dense model": (
        ("export", "{tiny}", "{out}", "--format", "upstream"),
        "there are no codes to write",
    ),
    "export rows of 48": (("export", "{artefact}", "{out}", "--format", "upstream"), "rows that are multiples of 32"),
    "evaluate precision 9": (("evaluate", "{artefact}", "--text", "{text}", "--precision", "9"), "holds 3, 4, 5, 6"),
    "evaluate no text": (("evaluate", "{artefact}", "--text", "{in}/nowhere"), "nowhere: No such file"),
    "evaluate one token": (("evaluate", "{artefact}", "--text", "{text}", "--max-tokens", "1"), "at least 2 tokens"),
    "evaluate no tokens": (("evaluate", "{artefact}", "--text", "{text}", "--max-tokens", "-3"), "max-tokens"),
    "evaluate long chunks": (
        ("evaluate", "{artefact}", "--text", "{text}", "--sequence-length", "999"),
        "context of 256",
    ),
    "precision of a dense model": (("evaluate", "{tiny}", "--text", "{text}", "--precision", "4"), "no precisions"),
    "generate precision 7": (("generate", "{artefact}", "--prompt", "a", "--precision", "7"), "holds 3, 4, 5, 6"),
    "evaluate precision 2.5": (
        ("evaluate", "{artefact}", "--text", "{text}", "--precision", "3,2.5"),
        "must lie between 3 and 6 bits, got 2.5",
    ),
    "generate precision nan": (
        ("generate", "{artefact}", "--prompt", "a", "--precision", "nan"),
        "must lie between 3 and 6 bits, got nan",
    ),
    "export precision 6.5": (("export", "{artefact}", "{out}", "--precision", "6.5"), "between 3 and 6 bits, got 6.5"),
    "a fraction of a dense model": (("export", "{tiny}", "{out}", "--precision", "3.5"), "no precisions"),
    "generate from nothing": (("generate", "{artefact}", "--prompt", ""), "empty"),
    "generate too much": (("generate", "{artefact}", "--prompt", "a", "--max-new-tokens", "999"), "context of 256"),
    "generate a chat without template": (("generate", "{artefact}", "--prompt", "a", "--chat"), "no chat template"),
    "generate cold": (("generate", "{artefact}", "--prompt", "a", "--temperature", "-1"), "temperature"),
    "devices that are not there": (
        ("generate", "{artefact}", "--prompt", "a", "--devices", "99"),
        "split over 1 to",
    ),
    "export precision 9": (("export", "{artefact}", "{out}", "--precision", "9"), "holds 3, 4, 5, 6"),
    "export a dense model": (("export", "{tiny}", "{out}", "--precision", "4"), "no precisions"),
    "export onto something": (("export", "{artefact}", "{in}/taken", "--precision", "4"), "taken already exists"),
    "negative seed": (
        (
            "quantize",
            "{tiny}",
            "{out}",
            "--calibration",
            "{text}",
            "--num-sequences",
            "1",
            "--sequence-length",
            "9",
            "--seed",
            "-1",
        ),
        "seed of the calibration windows must be 0 or more, got -1",
    ),
    "a prompt that is not UTF-8": (
        ("generate", "{artefact}", "--prompt", "caf\udce9"),
        r"the text is not UTF-8: character 3 is '\udce9'",
    ),
    "unknown format": (("export", "{artefact}", "{out}", "--precision", "4", "--format", "onnx"), "onnx"),
    "unknown option": (("generate", "{artefact}", "--prompt", "a", "--beams", "4"), "--beams"),
    "no prompt": (("generate", "{artefact}"), "--prompt"),
    "a word for a number": (("evaluate", "{artefact}", "--text", "{text}", "--precision", "four"), "'--precision'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(mistake: str, folder: Path, broken: Path, tmp_path: Path) -> None:
    arguments, message = MISTAKES[mistake]
    places = {
        "in": broken,
        "out": tmp_path / "out",
        "tiny": folder / "tiny",
        "text": folder / "text.txt",
        "artefact": folder / "artefact",
    }
    done = anyprec(*(argument.format(**places) for argument in arguments))

    assert done.exit_code == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in (broken / "taken").iterdir()] == ["thesis.tex"]
    assert (broken / "prose.txt").read_text() == "It was a dark and stormy night."


def test_export_looks_at_its_destination_first(folder: Path, broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: object, **_kwargs: object) -> None:
        pytest.fail("minutes of loading, for nothing")

    monkeypatch.setattr("anyprec_jax.checkpoint.formats.open_source", load)
    assert anyprec("export", folder / "artefact", broken / "taken", "--precision", 4).exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    shown = anyprec(command, "--help")
    assert shown.exit_code == 0
    assert f"Example: anyprec {command}" in " ".join(shown.stdout.split())


def test_ctrl_c_is_130(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anyprec_jax.model_quantization.quantize_model", interrupt)
    done = anyprec("quantize", folder / "tiny", tmp_path / "out", "--uniform")
    assert done.exit_code == 130
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_xla_computes_is_130(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, whose end must not be a crash."""
    program = "from anyprec_jax.cli import run; run()"
    arguments = ["quantize", folder / "tiny", tmp_path / "out", "--calibration", folder / "text.txt"]
    counts = ["--num-sequences", "13", "--sequence-length", "32"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments), *counts], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("sensitivity 0/13")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.endswith("interrupted\n") and "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == [".out.quantizing"]  # from which it would continue


def test_an_interrupt_that_got_lost_is_raised_at_the_next_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_interrupts", [])
    with progress_bars(Console(file=io.StringIO())) as report:
        report("counting", 0, 2)
        with pytest.raises(KeyboardInterrupt):
            interrupts._interrupt(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            report("counting", 1, 2)


def test_a_bug_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("anyprec_jax.inspection.inspect", fail)
    with pytest.raises(ZeroDivisionError):
        anyprec("inspect", folder / "artefact")


def test_no_arguments_show_the_help() -> None:
    done = anyprec()
    assert done.exit_code == 2
    assert all(command in done.stdout + done.stderr for command in COMMANDS)


def test_a_missing_native_op_is_said_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyprec_jax.ops.cpu.why_unavailable", lambda: "no compiler was found")
    done = anyprec("generate", folder / "artefact", "--prompt", "a", "--max-new-tokens", 1)
    assert done.exit_code == 0
    assert done.stderr.startswith("note: plain XLA is used") and done.stderr.count("\n") == 1
