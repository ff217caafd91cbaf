"""From ``uint8`` pixels to what a model reads."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from clusterprune.arguments import check_instance, check_statistics
from clusterprune.errors import ArgumentError


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute ``(images / 255 - mean) / std`` per channel.

    Parameters
    ----------
    images
        ``uint8`` (n, c, h, w) or (c, h, w), on any device. Grey images (c = 1) are repeated to
        three channels when ``mean`` has three.
    mean, std
        One number per channel, on the scale 0..1.

    Returns
    -------
    Tensor
        float32, on the same device.

    Raises
    ------
    ArgumentError
        When the images are not ``uint8``, the numbers of channels differ, or a ``std`` is not
        positive.
    """
    check_instance("images", images, Tensor, "torch.from_numpy(images) makes one of an array")
    mean, std = check_statistics(mean, std)
    if images.dtype != torch.uint8 or images.dim() not in {3, 4}:
        raise ArgumentError(
            "images must be uint8 of shape (n, c, h, w) or (c, h, w), but got "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )
    channels = images.shape[-3]
    if len(mean) != len(std):
        raise ArgumentError(f"mean and std must have one number per channel each, but got {len(mean)} and {len(std)}.")
    if len(mean) != channels and not (channels == 1 and len(mean) == 3):
        raise ArgumentError(
            f"mean and std have {len(mean)} number(s), but the images have {channels} channel(s). "
            "Give one number per channel, or images that fit the model."
        )
    if not all(s > 0 for s in std):
        raise ArgumentError(f"std must be positive, but got std={tuple(std)}.")
    scale, shift = _scale_and_shift(mean, std, images.device)
    return torch.addcmul(shift, images.to(torch.float32), scale)


@functools.lru_cache(maxsize=32)  # to send six numbers to a device is to wait for it
@torch.inference_mode(mode=False)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (len(mean), 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale.view(shape), shift.view(shape)
