import pytest
import torch

from clusterprune.data import normalize
from clusterprune.errors import ArgumentError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def test_formula():
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    expected = (images.double() / 255 - mean) / std
    result = normalize(images, MEAN, STD)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() < 1e-6
    assert torch.equal(normalize(images[0], MEAN, STD), result[0])


def test_grey_is_repeated_for_three_means():
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    result = normalize(images, MEAN, STD)
    assert result.shape == (2, 3, 4, 4)
    assert torch.equal(result, normalize(images.expand(-1, 3, -1, -1), MEAN, STD))
    assert normalize(images, (0.5,), (0.5,)).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("channels", "mean", "std", "words"),
    [
        (3, MEAN, (0.2, 0.2), "got 3 and 2"),
        (3, (0.5,), (0.5,), r"1 number\(s\), but the images have 3"),
        (1, (0.5, 0.5), (0.5, 0.5), r"2 number\(s\), but the images have 1"),
        (3, MEAN, (0.2, 0.0, 0.2), "positive"),
        (3, MEAN, (0.2, float("nan"), 0.2), "positive"),
    ],
)
def test_numbers_that_do_not_fit(channels, mean, std, words):
    with pytest.raises(ArgumentError, match=words):
        normalize(torch.zeros(1, channels, 2, 2, dtype=torch.uint8), mean, std)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 2, 2), torch.zeros(2, 2, dtype=torch.uint8)])
def test_only_uint8_images(images):
    with pytest.raises(ArgumentError, match="uint8"):
        normalize(images, MEAN, STD)
