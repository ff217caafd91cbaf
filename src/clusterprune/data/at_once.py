"""How many images go through a network at once, where nothing is learnt from them."""

import torch

_PIXELS = 2**18
"""For each thread."""
_MOST = 250


def images_at_once(height: int, width: int, device: torch.device) -> int:
    """Return how many images of this size a device takes at once the fastest: 250 at most.

    On a processor the maps of a batch should stay in its caches, and be of a size that allocators use again: of 224
    pixels, 250 images at once take two to three times as long each as five, on one thread.
    """
    if device.type != "cpu":
        return _MOST
    return min(_MOST, max(1, _PIXELS * torch.get_num_threads() // (height * width)))
