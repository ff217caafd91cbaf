"""Random windows: the same place in a tensor and in a file of any shape."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clusterprune.data.crops import DRAWS, MOST_STRETCHED, SMALLEST_AREA, mirrored, resized_crop, windows
from clusterprune.data.decode import decode

unit = st.floats(0, 1, exclude_max=True, width=32)


@given(st.lists(unit, min_size=DRAWS, max_size=DRAWS), st.integers(1, 500), st.integers(1, 500))
def test_a_window_lies_in_the_image_and_has_its_share_of_it(draws, height, width):
    left, top, across, down = windows(torch.tensor([draws]).double(), height, width)[0].tolist()
    assert 0 <= left <= left + across <= 1 + 1e-12
    assert 0 <= top <= top + down <= 1 + 1e-12
    if across < 1 and down < 1:
        assert SMALLEST_AREA - 1e-9 <= across * down <= 1
        ratio = across * width / (down * height)
        assert 1 / MOST_STRETCHED - 1e-9 <= ratio <= MOST_STRETCHED + 1e-9


def ramp(tmp_path, height, width):
    """A file whose red says how far to the right a pixel is, and whose green how far down."""
    across = ((torch.arange(width) + 0.5) / width * 255).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height * 255)[:, None].expand(height, width)
    pixels = torch.stack([across, down, across], 2).round().to(torch.uint8)
    path = tmp_path / "ramp.png"
    Image.fromarray(pixels.numpy()).save(path)
    return str(path), pixels.permute(2, 0, 1)


def test_a_file_is_cropped_where_the_draws_say(tmp_path):
    path, _ = ramp(tmp_path, 300, 480)
    for draws in torch.rand(20, DRAWS, generator=torch.Generator().manual_seed(0)):
        left, top, across, down = windows(draws[None], 300, 480)[0].tolist()
        out = decode(path, 64, draws).double() / 255
        assert out.shape == (3, 64, 64)
        columns = out[0].flip(1) if mirrored(draws[None])[0] else out[0]
        middles = (torch.arange(64) + 0.5) / 64
        inside = slice(1, -1)  # the outermost pixel has nothing to be averaged with on one side
        assert torch.allclose(columns[5, inside], (left + across * middles.double())[inside], atol=0.005)
        assert torch.allclose(out[1, inside, 5], (top + down * middles.double())[inside], atol=0.005)


def test_a_file_and_a_tensor_are_cropped_alike(tmp_path):
    path, pixels = ramp(tmp_path, 64, 64)
    for draws in torch.rand(10, DRAWS, generator=torch.Generator().manual_seed(1)):
        tensor = resized_crop(pixels[None], draws[None])[0]
        assert (tensor.int() - decode(path, 64, draws).int()).abs().max() <= 3  # at the edges, where nothing is beyond


def test_without_a_size_a_window_comes_to_that_of_its_file(tmp_path):
    path, pixels = ramp(tmp_path, 30, 48)
    draws = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.9])
    out = decode(path, None, draws)
    assert out.shape == pixels.shape
    assert (out.int() - resized_crop(pixels[None], draws[None])[0].int()).abs().max() <= 3


def test_a_window_is_averaged_not_picked_from(tmp_path):
    """Files are larger than what is made of them: without antialiasing, thin stripes would become noise."""
    stripes = torch.zeros(256, 256, 3, dtype=torch.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes.numpy()).save(tmp_path / "stripes.png")
    out = decode(str(tmp_path / "stripes.png"), 16, torch.tensor([0.99, 0.5, 0.5, 0.5, 0.9]))
    assert (out.double() - 127.5).abs().max() < 12
