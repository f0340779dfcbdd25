"""Devices: peak FLOP/s and memory bandwidth from data sheets; precisions that this machine's processor computes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """A device: peak FLOP/s by precision (16 bits on tensor cores, fp32 not), memory (bytes, and per second), sheet."""

    peak_flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    memory_bytes: float
    source: str


DEVICES: dict[str, Device] = {
    "v100": Device(
        {"fp32": 15.7e12, "fp16": 125e12}, 900e9, 32e9,
        "NVIDIA V100 Tensor Core GPU data sheet (2020), SXM2",
    ),
    "a100": Device(
        {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12}, 2039e9, 80e9,
        "NVIDIA A100 Tensor Core GPU data sheet (2022), 80GB SXM, without sparsity",
    ),
    "h100": Device(
        {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 3350e9, 80e9,
        "NVIDIA H100 Tensor Core GPU data sheet (2023), SXM; half of the 1,979 given with sparsity",
    ),
    "h200": Device(
        {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 4800e9, 141e9,
        "NVIDIA H200 Tensor Core GPU data sheet (2023), SXM; half of the 1,979 given with sparsity",
    ),
}  # fmt: skip

# Flags in /proc/cpuinfo of processors that multiply in a precision: x86, then ARM.
CPU_FLAGS = {
    "bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
# oneDNN, which computes for PyTorch, uses no later instructions than this variable names; these have none for 16 bits.
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
ISAS_WITHOUT_16_BITS = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def cpu_computes(precision: str) -> bool:
    """Return whether this machine's processor has instructions for a precision, or computes it in software."""
    if precision not in CPU_FLAGS:
        return True
    if any(os.environ.get(name, "").upper() in ISAS_WITHOUT_16_BITS for name in ISA_VARIABLES):
        return False
    return not CPU_FLAGS[precision].isdisjoint(cpu_flags())


def cpu_flags() -> set[str]:
    """Return what this machine's processor can do, as the kernel names it; nothing if the kernel does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())
