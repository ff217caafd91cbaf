import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from clusterprune.data.augment import augment, padding_for
from clusterprune.errors import ArgumentError
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


@settings(deadline=None, max_examples=examples(60))
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
    out = augment(images, kind, generator(seed))
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert torch.equal(images, before)
    assert torch.equal(out, augment(images, kind, generator(seed)))
    for image, result in zip(images, out, strict=True):
        possible = [image] if kind == "none" else windows(image, kind == "crop_flip")
        assert any(torch.equal(result, window) for window in possible)


@pytest.mark.parametrize(("kind", "flips"), [("crop", False), ("crop_flip", True)])
def test_images_draw_every_window_evenly_and_each_for_itself(kind: Augmentation, flips: bool) -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    possible = windows(image, flips)
    out = augment(image.repeat(3600, 1, 1, 1), kind, generator())
    counts = torch.stack([(out == window).flatten(1).all(1).sum() for window in possible])
    assert counts.sum() == 3600
    expected = 3600 / len(possible)
    assert (counts - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize(("size", "padding"), [(4, 1), (8, 1), (32, 4), (128, 16), (224, 28)])
def test_padding_is_four_at_32_pixels_and_in_proportion(size: int, padding: int) -> None:
    assert padding_for(size) == padding


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ArgumentError, match="'crop', 'resized_crop_flip' or 'none', but got 'rotate'"):
        augment(torch.zeros(1, 1, 4, 4), "rotate", generator())  # pyright: ignore[reportArgumentType]


def ramp(size: int) -> Tensor:
    """An image whose two channels say where each pixel is, from -1 to 1."""
    places = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack([places.expand(size, size), places[:, None].expand(size, size)])


def test_a_resized_crop_is_a_window_of_the_image_stretched_to_its_size() -> None:
    size = 64
    out = augment(ramp(size).expand(400, 2, size, size), "resized_crop_flip", generator())
    x, y = out[:, 0].diff(dim=2), out[:, 1].diff(dim=1)
    inside = slice(1, -1)  # the outermost pixel may lie beyond the last centre
    across, down = x[:, :, inside].mean((1, 2)) * size / 2, y[:, inside].mean((1, 2)) * size / 2
    assert (x[:, :, inside] * across.sign()[:, None, None] > 0).all()  # straight, in one direction
    assert torch.allclose(out[:, 0], out[:, 0, :1].expand_as(out[:, 0]), atol=1e-5)
    area, stretch = across.abs() * down, across.abs() / down
    assert 0.07 < area.min() < 0.2
    assert 0.8 < area.max() <= 1.001
    assert 0.7 < stretch.min() < 0.8
    assert 1.25 < stretch.max() < 1.4
    assert 150 < (across < 0).sum() < 250
    assert (down > 0).all()


def test_resized_crops_are_drawn_per_image_and_alike_in_every_process() -> None:
    images = torch.randint(256, (8, 3, 16, 16), generator=generator(1)).to(torch.uint8)
    whole = augment(images, "resized_crop_flip", generator(3))
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, augment(images, "resized_crop_flip", generator(3)))
    for rank in range(2):
        share = slice(rank, 8, 2)
        mine = augment(images[share], "resized_crop_flip", generator(3), 8, share)
        assert torch.equal(mine, whole[share])
    assert len(augment(images[:0], "resized_crop_flip", generator())) == 0
