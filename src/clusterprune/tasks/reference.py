"""A network that others are held to."""

import copy
import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


class Reference:
    """A copy of a network in evaluation mode that is never changed, and follows the images from device to device."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.device: torch.device | None = None
        self._dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), None)

    def follow(self, device: torch.device) -> bool:
        """Move to `device`; tell whether that was needed."""
        moved = self.device != device
        if moved:
            self.network.to(device)
            self.device = device
        return moved

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """Return the network's outputs, without gradients."""
        self.follow(images.device)
        return self.network(images.to(self._dtype or images.dtype))

    def __repr__(self) -> str:
        """Name the network by its class and a digest of its weights."""
        return f"<{type(self.network).__name__} {self._digest}>"

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]
