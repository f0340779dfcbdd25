"""Training devices: dense peak FLOP/s and memory bandwidth from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A device: peak FLOP/s by precision (16 bits on tensor cores, fp32 not), memory bytes per second, data sheet."""

    peak_flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    source: str


DEVICES: dict[str, Device] = {
    "v100": Device(
        {"fp32": 15.7e12, "fp16": 125e12}, 900e9,
        "NVIDIA V100 Tensor Core GPU data sheet (2020), SXM2",
    ),
    "a100": Device(
        {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12}, 2039e9,
        "NVIDIA A100 Tensor Core GPU data sheet (2022), 80GB SXM, without sparsity",
    ),
    "h100": Device(
        {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 3350e9,
        "NVIDIA H100 Tensor Core GPU data sheet (2023), SXM; half of the 1,979 given with sparsity",
    ),
    "h200": Device(
        {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 4800e9,
        "NVIDIA H200 Tensor Core GPU data sheet (2023), SXM; half of the 1,979 given with sparsity",
    ),
}  # fmt: skip
