import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from clusterprune import train
from clusterprune.errors import ArgumentError
from clusterprune.train.augment import padding_for
from clusterprune.train.config import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(image: Tensor, flips: bool) -> list[Tensor]:
    """Every crop of the padded `image`, and its mirror images."""
    _, height, width = image.shape
    y, x = padding_for(height), padding_for(width)
    padded = functional.pad(image, (x, x, y, y))
    crops = [
        padded[:, top : top + height, left : left + width] for top in range(2 * y + 1) for left in range(2 * x + 1)
    ]
    return crops + [crop.flip(2) for crop in crops] * flips


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 6),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kind=st.sampled_from(["crop_flip", "crop", "none"]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_each_image_becomes_one_of_its_windows(
    count: int,
    channels: int,
    height: int,
    width: int,
    kind: Augmentation,
    dtype: torch.dtype,
    seed: int,
) -> None:
    shape = (count, channels, height, width)
    images = torch.randint(256, shape, generator=generator(seed)).to(dtype)
    before = images.clone()
    out = train.augment(images, kind, generator(seed))
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert torch.equal(images, before)
    assert torch.equal(out, train.augment(images, kind, generator(seed)))
    for image, result in zip(images, out, strict=True):
        possible = [image] if kind == "none" else windows(image, kind == "crop_flip")
        assert any(torch.equal(result, window) for window in possible)


@pytest.mark.parametrize(("kind", "flips"), [("crop", False), ("crop_flip", True)])
def test_images_draw_every_window_evenly_and_each_for_itself(kind: Augmentation, flips: bool) -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    possible = windows(image, flips)
    out = train.augment(image.repeat(3600, 1, 1, 1), kind, generator())
    counts = torch.stack([(out == window).flatten(1).all(1).sum() for window in possible])
    assert counts.sum() == 3600
    expected = 3600 / len(possible)
    assert (counts - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize(("size", "padding"), [(4, 1), (8, 1), (32, 4), (128, 16), (224, 28)])
def test_padding_is_four_at_32_pixels_and_in_proportion(size: int, padding: int) -> None:
    assert padding_for(size) == padding


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ArgumentError, match="'crop_flip', 'crop' or 'none', but got 'rotate'"):
        train.augment(torch.zeros(1, 1, 4, 4), "rotate", generator())  # pyright: ignore[reportArgumentType]
