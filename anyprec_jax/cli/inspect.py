"""`anyprec inspect`."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from anyprec_jax.cli.arguments import AsJson, ModelPath, print_json
from bandwise_commands.errors import reporting_errors

_FRACTIONAL = {
    True: "fractional precisions, 3.5 say: yes",
    False: "fractional precisions: no, quantize with a calibration text to have them",
}


@reporting_errors
def inspect(model: ModelPath, as_json: AsJson = False) -> None:
    """Show what a model on disk is: format, family, parameters, precisions, bytes in memory at each; no weight is read."""
    from anyprec_jax.inspection import inspect as describe

    report = describe(model)
    if as_json:
        print_json(report)
    else:
        _print_inspection(report)


def _print_inspection(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    precisions = [str(w) for w in report["precisions"]]
    console.print(
        f"{report['format']}, family {report['family']}, {report['layers']} layers, {report['parameters']:,} parameters, "
        f"precisions {', '.join(precisions) or 'none (not quantized)'}{'' if report['tokenizer'] else ', no tokenizer'}",
        soft_wrap=True,
    )
    memory = report["resident_bytes"]
    shares = [f"{memory[w] / 1e6:,.1f} MB at {w} bits" for w in precisions]
    shares.append(f"{memory['all'] / 1e6:,.1f} MB {'at all' if precisions else 'in float32'}")
    console.print(f"in memory: {', '.join(shares)}", soft_wrap=True)
    if precisions:
        _print_matrices(console, report, precisions)
    if report["fractional_precisions"] is not None:
        console.print(_FRACTIONAL[report["fractional_precisions"]], soft_wrap=True)
    sizes = report["bytes"]
    console.print(
        f"{report['quantized_weights']:,} any-precision weights in {sizes['quantized'] / 1e6:.1f} MB, "
        f"{report['affine_weights']:,} affine in {sizes['affine'] / 1e6:.1f} MB, "
        f"{report['unquantized_weights']:,} others in {sizes['unquantized'] / 1e6:.1f} MB",
        soft_wrap=True,
    )
    console.print(f"{sizes['on_disk'] / 1e6:.1f} MB on disk")
    if (made := _how_it_was_made(report["provenance"])) is not None:
        console.print(made, soft_wrap=True, markup=False)
    for name, array in report["arrays"].items():
        shape = "x".join(map(str, array["shape"]))
        console.print(f"{array['sha256'][:16]}  {name}  {array['dtype']} {shape}", soft_wrap=True, markup=False)
    for name, file in report["files"].items():
        console.print(f"{file['sha256'][:16]}  {name}  {file['nbytes']:,} bytes", soft_wrap=True, markup=False)


def _how_it_was_made(provenance: dict[str, Any]) -> str | None:
    """One line, or nothing where a foreign hand left something else in the manifest."""
    try:
        quality = provenance["quantization"].get("quality", "fast")
        if (calibration := provenance["calibration"]) is None:
            return f"quality {quality}, every weight counted the same"
        texts = ", ".join(map(str, calibration.get("texts") or [calibration.get("text")]))
        return (
            f"quality {quality}, calibrated on {calibration['num_sequences']} sequences of {calibration['sequence_length']} tokens "
            f"of {texts}"
        )
    except (KeyError, TypeError, AttributeError):
        return None


def _print_matrices(console: Console, report: dict[str, Any], precisions: Sequence[str]) -> None:
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
    resident = [f"{bits:.2f} {kind}" for kind, bits in report["resident_bits_by_codebooks"].items()]
    console.print(
        f"codebooks: {' and '.join(report['codebooks'])}; resident bits per weight with {', '.join(resident)}",
        soft_wrap=True,
    )


def _bits(bits: dict[str, Any], precisions: Sequence[str]) -> list[str]:
    return [f"{bits['resident']:.2f}", *(f"{bits['read'][w]:.2f}" for w in precisions)]
