"""`anyprec inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anyprec_jax.cli.arguments import AsJson, print_json
from bandwise_commands.errors import reporting_errors


@reporting_errors
def inspect(
    out: Annotated[Path, typer.Argument(help="An artefact.", show_default=False)], as_json: AsJson = False
) -> None:
    """Show what an artefact holds: matrices, precisions, bits per weight resident and read, sizes, checksums."""
    from anyprec_jax.inspection import inspect as describe

    report = describe(out)
    if as_json:
        print_json(report)
    else:
        _print_inspection(report)


def _print_inspection(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    precisions = [str(w) for w in report["precisions"]]
    console.print("bits per weight, planes and codebooks: resident, and read at each precision")
    table = Table("matrix", "layers", "n", "k", "resident", *precisions, box=None, pad_edge=False)
    for name, matrix in report["matrices"].items():
        size = [str(matrix[key]) for key in ("layers", "n", "k")]
        table.add_row(name.removeprefix("layers/"), *size, *_bits(matrix["bits_per_weight"], precisions))
    table.add_row("all", "", "", "", *_bits(report["bits_per_weight"], precisions))
    for name, head in report["affine"].items():
        bits = f"{head['bits_per_weight']:.2f}"
        table.add_row(name, "", str(head["n"]), str(head["k"]), bits, *[bits] * len(precisions))
    console.print(table)
    sizes = report["bytes"]
    console.print(
        f"{report['quantized_weights']:,} any-precision weights in {sizes['quantized'] / 1e6:.1f} MB, "
        f"{report['affine_weights']:,} affine in {sizes['affine'] / 1e6:.1f} MB, "
        f"{report['unquantized_weights']:,} others in {sizes['unquantized'] / 1e6:.1f} MB",
        soft_wrap=True,
    )
    console.print(f"{sizes['on_disk'] / 1e6:.1f} MB on disk")
    for name, array in report["arrays"].items():
        shape = "x".join(map(str, array["shape"]))
        console.print(f"{array['sha256'][:16]}  {name}  {array['dtype']} {shape}", soft_wrap=True, markup=False)


def _bits(bits: dict[str, Any], precisions: Sequence[str]) -> list[str]:
    return [f"{bits['resident']:.2f}", *(f"{bits['read'][w]:.2f}" for w in precisions)]
