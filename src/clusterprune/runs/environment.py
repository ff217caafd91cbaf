"""What a run runs on: its command line, versions, device and threads."""

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from clusterprune.files.credentials import hide_in_argument
from clusterprune.train.config import TrainConfig, resolve_device

_PACKAGES = ("clusterprune", "torch", "torchvision", "numpy", "scikit-learn", "safetensors")


def pick_device(device: str | None) -> torch.device:
    """Return the device by name; None is CUDA when there is one, else the CPU.

    Raises
    ------
    ArgumentError
        If this machine has no such device.
    """
    return resolve_device(TrainConfig(device=device))


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a run ran on: command line, versions, device and threads."""
    return {
        "command_line": shlex.join([Path(sys.argv[0]).name, *(hide_in_argument(text) for text in sys.argv[1:])]),
        "working_folder": str(Path.cwd()),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
    }


def version_of(package: str) -> str:
    """Return the version of an installed package, or "unknown"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    """Return the processor's name, which `platform` knows on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
