"""What torchvision computes of boxes, imported when it is asked for: that takes seconds, and classifiers need none."""

from importlib import import_module
from typing import Any


def ops() -> Any:
    """Return `torchvision.ops`."""
    return import_module("torchvision.ops")
