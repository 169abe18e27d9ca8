"""What a run says of the machine that it ran on, and of time."""

import importlib.metadata
import math
import platform
import sys

import torch

from clipdec.training.memory import peak_resident_mb


def peak_memory_mb(device="cpu"):
    """Peak memory in MB: of a GPU what torch has allocated there, else the resident memory of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_resident_mb()


def device_name(device):
    """"NVIDIA H100", "cpu"."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def print_anything():
    """Let stdout take names that its encoding has no letters for, as on a pipe of Windows: a ? stands for those."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def duration(seconds):
    """"2 min 5 s" """
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def versions():
    """Versions that a result depends on."""
    packages = {"clipdec": "clipdec", "open_clip": "open_clip_torch", "timm": "timm", "accelerate": "accelerate"}
    found = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {"python": platform.python_version(), "torch": torch.__version__} | found
