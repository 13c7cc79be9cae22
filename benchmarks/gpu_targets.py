"""What XLA has to know of a GPU to compile for it where there is none: text of its `GpuTargetConfigProto`."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """From the data sheets and the CUDA programming guide's table of compute capabilities."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    bandwidth_bytes_per_s: int
    l2_bytes: int
    shared_bytes: int  # of one multiprocessor
    block_shared_bytes: int  # that one block may ask for
    clock_ghz: float
    threads: int  # of one multiprocessor


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 80 << 30, 3352 * 10**9, 50 << 20, 233472, 232448, 1.98, 2048),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 80 << 30, 2039 * 10**9, 40 << 20, 167936, 166912, 1.41, 2048),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 24 << 30, 300 * 10**9, 48 << 20, 102400, 101376, 2.04, 1536),
}


def target_config(gpu: Gpu) -> str:
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {64 if gpu.capability == (8, 0) else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth_bytes_per_s}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes}
  shared_memory_per_block_optin: {gpu.block_shared_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.name}"
"""
