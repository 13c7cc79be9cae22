"""Claim: the TPU and GPU kernels compile for seven targets and get no slower.
Beside: recorded figures of the compilers; dense bfloat16.

Compiles the Pallas kernels for TPUs and GPUs that are not here, and compares what the compilers say with the record.

    make aot                    compare with benchmarks/results/anyprec_aot.json; exit status 2 if anything is 5 % worse
    make aot AOT=--record       write the record anew

For TPU, VLIW bundles of one step of the kernel per 1024 weights, a static estimate of cycles that knows no waiting for memory;
registers spilled, likewise; and whether XLA copies the planes before the kernel. A decode step of a model split over four chips is compiled
too: how often they communicate, the step's layer counted once for all layers. For GPU, registers of a thread, bytes it spills,
and shared memory, by ptxas. `make aot` installs the compilers, which need no device and no driver, in an environment of their own.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_targets import GPUS, target_config
from benchmarks.timing import RESULTS, record

TOLERANCE = 0.05
PRECISIONS = range(2, 9)
ROWS = (1, 8)  # of x
DTYPES = ("bfloat16", "float32")
N, K, LAYERS = 4096, 4096, 16
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "v4": "v4:2x2x1"}
SPLIT_PRECISION = 4
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_embeddings": True,
}
Figures = dict[str, dict[str, float]]  # what was compiled -> name of the figure -> its value; less is better


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the record instead of comparing with it")
    parser.add_argument("--platform", choices=["tpu", "cuda"], help=argparse.SUPPRESS)  # one process for each compiler
    arguments = parser.parse_args()
    if arguments.platform:
        measure = {"tpu": tpu_figures, "cuda": gpu_figures}[arguments.platform]
        for name, figures in measure():
            print(json.dumps({name: figures}), flush=True)
        return
    measured: Figures = {}
    for platform in ("tpu", "cuda"):
        measured |= in_own_process(platform)
    path = RESULTS / "anyprec_aot.json"
    if arguments.record or not path.exists():
        print(f"wrote {record('anyprec_aot', {'n': N, 'k': K, 'layers': LAYERS}, measured)}")
        return
    complaints = worse(json.loads(path.read_text(encoding="utf-8"))["results"], measured)
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    if complaints:
        raise SystemExit(2)
    print(f"{len(measured)} kernels compiled; none is more than {TOLERANCE:.0%} worse than {path}")


def worse(recorded: Figures, measured: Figures, *, tolerance: float = TOLERANCE) -> list[str]:
    """One line for each figure that is missing, or more than `tolerance` above the recorded one."""
    complaints = []
    for kernel, figures in recorded.items():
        if kernel not in measured:
            complaints.append(f"{kernel}: recorded, but not compiled")
            continue
        for name, before in figures.items():
            now = measured[kernel].get(name)
            if now is None:
                complaints.append(f"{kernel}: {name} was {before:g}, and is missing")
            elif now > before * (1 + tolerance):
                complaints.append(f"{kernel}: {name} was {before:g}, is {now:g}")
    return complaints


def in_own_process(platform: str) -> Figures:
    """The figures of one platform; prints them as they come."""
    command = [sys.executable, "-m", "benchmarks.anyprec_aot", "--platform", platform]
    with tempfile.TemporaryDirectory() as dump:
        process = subprocess.Popen(command, env=environment(platform, dump), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        figures: Figures = {}
        for line in process.stdout:
            if line.startswith("{"):
                figures |= (new := json.loads(line))
                for name, values in new.items():
                    print(name, *(f"{value:g} {figure}" for figure, value in values.items()), sep="  ", flush=True)
        if process.wait() != 0:
            raise SystemExit(f"error: the compiler for {platform} failed with status {process.returncode}, see above")
    return figures


def environment(platform: str, dump: str) -> dict[str, str]:
    """Everything is set before JAX is imported."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "DUMP": dump,
    }
    if platform == "tpu":
        passes = ".*(final_bundles|per-bundle).*"
        variables["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={passes} "
            "--xla_jf_debug_level=1"
        )
    else:
        variables["XLA_FLAGS"] = f"--xla_dump_to={dump} --xla_gpu_autotune_level=0"
        variables["PATH"] = f"{ptxas().parent}{os.pathsep}{variables['PATH']}"
    return variables


def ptxas() -> Path:
    for file in importlib.metadata.files("nvidia-cuda-nvcc") or ():
        if file.name == "ptxas":
            return Path(str(file.locate()))
    raise SystemExit("error: no ptxas: run this through `make aot`")


def cases() -> Iterator[tuple[int, int, str]]:
    for precision in PRECISIONS:
        for rows in ROWS:
            for dtype in DTYPES:
                yield precision, rows, dtype


def compiled(operation: Callable, device: Any, platform: str, precision: int, rows: int, dtype: str) -> Any:
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    def shape(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    operands = (
        shape((rows, K), jnp.dtype(dtype)),
        shape((LAYERS, 8, N, K // 32), jnp.uint32),
        shape((LAYERS, N, 2**precision), jnp.float16),
        shape((), jnp.int32),
    )
    return jax.jit(operation).trace(*operands).lower(lowering_platforms=(platform,)).compile()


def tpu_figures() -> Iterator[tuple[str, dict[str, float]]]:
    from jax.experimental import topologies

    from anyprec_jax.ops import pallas_tpu
    from anyprec_jax.ops.tuning import tpu_tiles

    yield from split_figures()
    for chip, topology in TOPOLOGIES.items():
        device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        for precision, rows, dtype in cases():
            tiles = tpu_tiles(rows, N, K, precision=precision, sublane_gather=chip != "v4")
            clear_dump()
            executable = compiled(
                lambda *operands, tiles=tiles: pallas_tpu.matmul(*operands, tiles=tiles),
                device,
                "tpu",
                precision,
                rows,
                dtype,
            )
            thousands = tiles.rows * tiles.words * 32 / 1024
            yield (
                f"{chip} {precision} bits, {rows} x {dtype}",
                {
                    "bundles_per_1024_weights": round(count_bundles(dumped("final_bundles")) / thousands, 3),
                    "spills_per_1024_weights": round(count_spills(dumped("per-bundle-utilization")) / thousands, 3),
                    "copies_of_planes": copies_of_planes(executable.as_text()),
                },
            )


def split_figures() -> Iterator[tuple[str, dict[str, float]]]:
    """Decoding on a 2x2 topology, of a model of the shapes of Llama 3.2 1B: what chips tell each other, and what they need memory for."""
    from jax.experimental import topologies

    for chip in ("v5e", "v6e"):
        devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
        executable = compiled_split_step(devices)
        text, memory = executable.as_text(), executable.memory_analysis()
        yield (
            f"{chip} 2x2, a decode step at {SPLIT_PRECISION} bits",
            {
                "all_reduces_in_a_layer": len(
                    re.findall(r"sequences.*while/body.*psum", collectives(text, "all-reduce"))
                ),
                "all_reduces": collectives(text, "all-reduce").count("\n"),
                "all_gathers": collectives(text, "all-gather").count("\n"),
                "other_collectives": collectives(text, "(?:all-to-all|collective-permute|reduce-scatter)").count("\n"),
                "copies_of_planes": copies_of_planes(text),
                "argument_bytes_per_chip": memory.argument_size_in_bytes,
            },
        )


def collectives(hlo: str, kind: str) -> str:
    """The lines of a program that begin a collective operation."""
    return "".join(f"{line}\n" for line in hlo.splitlines() if re.search(rf" {kind}(?:-start)?\(", line))


def compiled_split_step(devices: Any) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from anyprec_jax import decoding
    from anyprec_jax.affine import AffineArray
    from anyprec_jax.array import AnyPrecArray
    from anyprec_jax.models.config import ModelConfig
    from anyprec_jax.models.decoder import init_cache
    from anyprec_jax.models.families import LAYERS, parameter_shapes
    from anyprec_jax.models.fusion import LINEARS
    from anyprec_jax.models.split import SPLIT, plan, shardings
    from anyprec_jax.sampling import checked_sampling

    config = ModelConfig(**LLAMA_1B)
    shape: Any = jax.ShapeDtypeStruct
    params: dict[str, Any] = {"layers": {}}
    for path, sizes in parameter_shapes(config).items():
        level, name = (params["layers"], path.removeprefix(LAYERS)) if path.startswith(LAYERS) else (params, path)
        level[name] = shape(sizes, jnp.float32)
        if name in LINEARS:
            layers, n, k = sizes
            books = {w: shape((layers, n, 2**w), jnp.float16) for w in PRECISIONS}
            level[name] = AnyPrecArray(shape((layers, 8, n, k // 32), jnp.uint32), books, 2, 8, k)
        elif name == "embedding":
            rows = shape(sizes[:1], jnp.float32)
            level[name] = AffineArray(shape(sizes, jnp.uint8), rows, rows)
    mesh = Mesh(np.array(devices).reshape(-1), ("model",))
    split = plan(config, LINEARS, mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any, sharding: Any = whole) -> Any:
        return shape(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(placed, params, shardings(params, split))
    params["layers"][SPLIT] = params[SPLIT] = split
    heads = NamedSharding(mesh, split.cache_spec)
    cache = jax.eval_shape(lambda: init_cache(config, batch=1, length=2048))
    cache = type(cache)(placed(cache.keys, heads), placed(cache.values, heads), placed(cache.lengths))
    rest = jax.eval_shape(lambda: (jnp.int32(0), jnp.zeros(2, jnp.int32), jax.random.key(0), checked_sampling()))
    token, ends, key, sampling = jax.tree.map(placed, rest)
    # Which kernels there are is asked of the devices that are here.
    with unittest.mock.patch("jax.default_backend", lambda: "tpu"):
        traced = decoding.decode.trace(
            params, token, token, ends, cache, key=key, sampling=sampling, config=config, precision=SPLIT_PRECISION
        )
        return traced.lower(lowering_platforms=("tpu",)).compile()


def gpu_figures() -> Iterator[tuple[str, dict[str, float]]]:
    from jax.experimental import topologies

    from anyprec_jax.ops import pallas_gpu

    for name, gpu in GPUS.items():
        description = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=target_config(gpu)
        )
        for precision, rows, dtype in cases():
            clear_dump()
            compiled(pallas_gpu.matmul, description.devices[0], "cuda", precision, rows, dtype)
            programs = [path for path in Path(os.environ["DUMP"]).glob("*.ptx") if pallas_gpu.NAME in read(path)]
            if len(programs) != 1:
                raise SystemExit(f"error: expected one kernel named {pallas_gpu.NAME} in the dump, got {programs}")
            yield f"{name} {precision} bits, {rows} x {dtype}", assembled(programs[0])


def assembled(program: Path) -> dict[str, float]:
    """What ptxas says of the kernel; it is the last of its PTX file."""
    target = re.search(r"\.target (\w+)", read(program))
    assert target is not None
    command = [str(ptxas()), "-v", f"-arch={target[1]}", str(program), "-o", f"{program}.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, stores, loads = (
        re.search(pattern, report)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    )
    assert registers is not None and stores is not None and loads is not None, report
    shared = re.search(r"(\d+) bytes smem", report)
    # What Triton allots at launch, for the sums across warps, is not in the PTX, and so not here.
    return {
        "registers": int(registers[1]),
        "spilled_bytes": int(stores[1]) + int(loads[1]),
        "static_shared_memory_bytes": int(shared[1]) if shared else 0,
    }


def clear_dump() -> None:
    for path in Path(os.environ["DUMP"]).iterdir():
        path.unlink()


def dumped(kind: str) -> str:
    """The text of the kernel's final dump of a kind."""
    other = re.compile("schedule|static_gap|TLP|<late|pre-delay")
    paths = Path(os.environ["DUMP"]).glob(f"*anyprec_matmul_tpu*{kind}*")
    files = [path for path in paths if not other.search(path.name)]
    if len(files) != 1:
        raise SystemExit(f"error: expected one dump of {kind}, got {files}: another libtpu than the pinned one?")
    return read(files[0])


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def count_bundles(text: str) -> int:
    """VLIW bundles inside the loop over the grid: those marked with `>`."""
    bundle = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s?([> ]*)\s*\{", re.MULTILINE)
    return sum(">" in marks for marks in bundle.findall(text))


def count_spills(text: str) -> int:
    """Registers stored to be loaded again: a column of the table of what each bundle uses."""
    columns = ("mxu", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill", "salu")
    rows = [line.split() for line in text.splitlines() if re.fullmatch(r"\s*\d+(\s+\d+){9}\s*", line)]
    return sum(int(row[columns.index("spill")]) for row in rows[1:])  # the first says how many slots there are


def copies_of_planes(hlo: str) -> int:
    return len(re.findall(rf"= u32\[{LAYERS},[\d,]+\]\S* copy\(", hlo))


if __name__ == "__main__":
    main()
