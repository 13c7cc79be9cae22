"""The `ginex` command: graphs larger than memory."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from bandwise_commands.application import application, end_process, run_application
from bandwise_commands.errors import messages, reporting_errors
from ginex_jax.cli.bench import bench
from ginex_jax.cli.byte_sizes import parse_bytes
from ginex_jax.cli.infer import infer
from ginex_jax.cli.plan import plan
from ginex_jax.cli.progress import progress_reports
from ginex_jax.cli.train import train

app = application(
    "ginex",
    "Put graphs larger than memory on disk, for graph neural networks to be trained from there.",
    example="ginex generate rmat graph --scale 16 --edge-factor 16 --feature-dim 64 --classes 8",
)
generate = typer.Typer(help="Make a synthetic graph.", no_args_is_help=True)
app.add_typer(generate, name="generate", epilog="Example: ginex generate rmat graph --scale 16 --edge-factor 16")
app.command(epilog="Example: ginex train graph --model sage --fanouts 10,10 --epochs 3 --out run")(train)
app.command(epilog="Example: ginex infer run graph --split test --out predictions.npy")(infer)
app.command(epilog="Example: ginex bench graph --cache 1GiB --policy belady --policy lru")(bench)
app.command(epilog="Example: ginex plan graph --cache 1GiB --cache 4GiB --fanouts 10,10,10 --plot misses.png")(plan)

Out = Annotated[Path, typer.Argument(help="The dataset to write: a new folder.", show_default=False)]
Memory = Annotated[str, typer.Option(help="Most memory to use, 500 MB of libraries aside: 512MiB, 8GB ...")]
FeatureDtype = Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="How features are stored.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The `ginex` command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    return run_application(app, "ginex", arguments)


def run() -> NoReturn:
    """The process: `main`, and its status for the shell."""
    end_process(main)


@app.command(epilog="Example: ginex ingest cora --edges edges.csv --features features.npy --labels labels.npy")
@reporting_errors
def ingest(
    out: Out,
    edges: Annotated[
        list[Path] | None, typer.Option(help="Edge list: Parquet, CSV, TSV, .npy or .npz; repeat for several files.")
    ] = None,
    ogb: Annotated[Path | None, typer.Option(help="An extracted OGB node-property folder.")] = None,
    planetoid: Annotated[Path | None, typer.Option(help="A folder with Planetoid's ind.NAME.* files.")] = None,
    sparse: Annotated[
        Path | None, typer.Option(help="A sparse matrix saved by SciPy; entry (i, j) is an edge i -> j.")
    ] = None,
    source_column: Annotated[str, typer.Option(help="Column that edges start from.")] = "src",
    target_column: Annotated[str, typer.Option(help="Column that edges point to.")] = "dst",
    weight_column: Annotated[
        str | None, typer.Option(help="Column of edge weights; with --sparse, any name keeps its values.")
    ] = None,
    num_nodes: Annotated[
        int | None, typer.Option(help="Nodes. Default: as many as features, else the largest id + 1.")
    ] = None,
    map_ids: Annotated[
        bool, typer.Option("--map-ids", help="Ids are text or sparse: number them, and keep the table.")
    ] = False,
    features: Annotated[Path | None, typer.Option(help="Feature rows: .npy, .npz, Parquet or zarr.")] = None,
    feature_dtype: FeatureDtype = "float32",
    labels: Annotated[
        Path | None, typer.Option(help="A class for every node (-1: none), or a row of floats (NaN: none).")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Node ids to train on.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Node ids to validate on.")] = None,
    test: Annotated[Path | None, typer.Option(help="Node ids to test on.")] = None,
    memory: Memory = "2GiB",
    undirected: Annotated[bool, typer.Option("--undirected", help="Add the reverse of every edge.")] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep one of several equal edges.")
    ] = False,
    add_self_loops: Annotated[bool, typer.Option("--add-self-loops", help="Give every node exactly one.")] = False,
    drop_self_loops: Annotated[bool, typer.Option("--drop-self-loops", help="Remove them.")] = False,
    reorder: Annotated[
        Literal["degree", "bfs"] | None,
        typer.Option(help="Renumber nodes, so that what is read together lies together."),
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")] = False,
) -> None:
    """Turn edge lists, features and labels into a dataset, whatever their size. Killed, it leaves no half dataset."""
    from ginex_jax.ingest.dataset_build import IngestOptions, build_dataset
    from ginex_jax.ingest.sources import NodeFiles, open_source

    if add_self_loops and drop_self_loops:
        raise ValueError("give either --add-self-loops or --drop-self-loops, not both")
    options = IngestOptions(
        num_nodes=num_nodes,
        map_ids=map_ids,
        feature_dtype=feature_dtype,
        memory_bytes=parse_bytes(memory),
        undirected=undirected,
        drop_duplicates=drop_duplicates,
        self_loops="add" if add_self_loops else "drop" if drop_self_loops else "keep",
        reorder=reorder,
        skip_bad_rows=skip_bad_rows,
    )
    source = open_source(
        edges=edges or None,
        ogb=ogb,
        planetoid=planetoid,
        sparse=sparse,
        columns=(source_column, target_column, weight_column),
        files=NodeFiles(features=features, labels=labels, train=train, valid=valid, test=test),
    )
    with progress_reports(messages) as progress:
        report = build_dataset(out, source, options, progress=progress)
    if report.skipped_rows:
        messages.print(
            f"note: {report.skipped_rows:,} bad rows: edges left out, features made zero, labels missing", markup=False
        )
    messages.print(f"wrote {out}: {report.num_nodes:,} nodes, {report.num_edges:,} edges", markup=False)


@generate.command(
    epilog="Example: ginex generate rmat graph --scale 20 --edge-factor 16 --feature-dim 128 --classes 16"
)
@reporting_errors
def rmat(
    out: Out,
    scale: Annotated[int, typer.Option(help="2^SCALE nodes.", show_default=False)],
    edge_factor: Annotated[int, typer.Option(help="Edges a node.", show_default=False)],
    feature_dim: Annotated[int, typer.Option(help="Width of the features; 0 for none.")] = 0,
    feature_dtype: FeatureDtype = "float32",
    classes: Annotated[int, typer.Option(help="Classes of the labels; 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    memory: Memory = "2GiB",
    edge_list: Annotated[Path | None, typer.Option(help="Write the edges to this Parquet file too.")] = None,
) -> None:
    """A Graph500 graph, with labels that can be learned from neighbours."""
    from ginex_jax.ingest.rmat_dataset import RmatOptions, generate_rmat

    options = RmatOptions(
        scale=scale,
        edge_factor=edge_factor,
        feature_dim=feature_dim,
        feature_dtype=feature_dtype,
        classes=classes,
        seed=seed,
        memory_bytes=parse_bytes(memory),
    )
    with progress_reports(messages) as progress:
        report = generate_rmat(out, options, edge_list=edge_list, progress=progress)
    messages.print(f"wrote {out}: {report.num_nodes:,} nodes, {report.num_edges:,} edges", markup=False)


@app.command(epilog="Example: ginex info graph --verify")
@reporting_errors
def info(
    path: Annotated[Path, typer.Argument(help="A dataset.", metavar="{dataset}", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and compare checksums.")] = False,
) -> None:
    """Show what a dataset holds: nodes, edges, arrays, sizes, where it came from."""
    from ginex_jax.store.dataset import open_dataset, verify_checksums
    from ginex_jax.store.description import describe

    dataset = open_dataset(path)
    if verify:
        with progress_reports(messages) as progress:
            verify_checksums(dataset, progress)
    report = describe(dataset) | ({"verified": True} if verify else {})
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _print_description(report)


def _print_description(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"{report['num_nodes']:,} nodes, {report['num_edges']:,} edges, {report['bytes'] / 1e6:,.1f} MB")
    if report["node_order"] != "original" or report["has_string_ids"]:
        console.print(f"node order: {report['node_order']}; original_ids has what nodes were called")
    table = Table("array", "dtype", "shape", "MB", "shards", box=None, pad_edge=False)
    for name, array in report["arrays"].items():
        shape = " x ".join(f"{size:,}" for size in array["shape"])
        table.add_row(name, array["dtype"], shape, f"{array['bytes'] / 1e6:,.1f}", str(array["shards"]))
    console.print(table)
    for name, value in report["provenance"].items():
        console.print(f"{name}: {value}", soft_wrap=True, markup=False)
    if report.get("verified"):
        console.print("all checksums match")
