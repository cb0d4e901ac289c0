"""What GPUs can do at most."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Gpu(NamedTuple):
    """Memory in GB and floating-point operations a second, dense, of the makers' data sheets; drivers' names of it."""

    memory: float
    bfloat16: float
    float32: float
    names: tuple[str, ...]


GPUS = {
    "h100": Gpu(80, 989e12, 67e12, ("NVIDIA H100 80GB HBM3",)),  # boards of other names are slower
    "h200": Gpu(141, 989e12, 67e12, ("NVIDIA H200",)),
    "h20": Gpu(96, 148e12, 44e12, ("NVIDIA H20",)),
    "a100": Gpu(
        80,
        312e12,
        19.5e12,
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"),
    ),
    "b200": Gpu(180, 2250e12, 75e12, ("NVIDIA B200",)),
    "l40s": Gpu(48, 362e12, 91.6e12, ("NVIDIA L40S",)),
    "rtx4090": Gpu(24, 165e12, 82.6e12, ("NVIDIA GeForce RTX 4090",)),
}


def peak_rate(device: torch.device, precision: str) -> float | None:
    """Operations a second of this device at most, in ``precision`` (float32, bfloat16); None where it is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(getattr(gpu, precision)) for gpu in GPUS.values() if name in gpu.names), None)
