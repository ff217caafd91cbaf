import io

import numpy as np
import pytest
import torch
from PIL import Image

from clusterprune.data.decode import decode, decode_into, is_image_name
from clusterprune.data.resize import geometry, resize_batch


def gradient(height=24, width=32):
    """Smooth picture, so that lossy formats stay close."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([y * 8, x * 6, (x + y) * 3], axis=-1).astype(np.uint8))


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif", "a.JPG", "a.jpeg", "a.webp", "a.gif"])
def test_every_format_gives_the_same_picture(tmp_path, name):
    image = gradient()
    options = {"quality": 95} if name in {"a.JPG", "a.jpeg", "a.webp"} else {}
    pixels = decode(saved(tmp_path, image, name, **options))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 24, 32)
    error = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(image)).mean()
    assert error < (10 if name == "a.gif" else 3 if options else 0.001)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"),
        ("LA", "a.png"),
        ("RGBA", "a.png"),
        ("P", "a.png"),
        ("1", "a.png"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("L", "a.jpg"),
        ("I", "a.tif"),
        ("F", "a.tif"),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, name):
    source = gradient().convert(mode)
    pixels = decode(saved(tmp_path, source, name))
    assert pixels.shape == (3, 24, 32)
    if mode != "1":
        expected = np.asarray(source.convert("RGB")).astype(int)
        assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).mean() < 5


def test_palette_transparency_is_dropped_silently(tmp_path):
    path = saved(tmp_path, gradient().convert("P"), "a.png", transparency=bytes(range(256)))
    assert decode(path).shape == (3, 24, 32)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 257 * 128, 65535]], dtype=np.uint16).repeat(4, axis=0)
    for name in ("a.png", "a.tif"):
        pixels = decode(saved(tmp_path, Image.fromarray(values), name))
        assert pixels[:, 0].tolist() == [[0, 1, 128, 255]] * 3


def test_floats_from_zero_to_one_are_spread(tmp_path):
    image = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    assert decode(saved(tmp_path, image, "a.tif"))[0].flatten().tolist() == list(range(0, 256, 17))


def test_nan_pixels_are_a_damaged_file(tmp_path):
    image = Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="finite"):
        decode(saved(tmp_path, image, "a.tif"))


def test_orientation_notes_are_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(tmp_path, gradient(), "a.jpg", exif=exif)).shape == (3, 24, 32)


def jpeg_bytes(**options):
    stream = io.BytesIO()
    gradient(64, 64).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        jpeg_bytes()[:-200],
        jpeg_bytes(progressive=True)[:-200],
        jpeg_bytes()[:30],
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"II*\x00" + b"\xff" * 64,
        b"GIF89a" + bytes(4),
    ],
)
def test_damaged_files_are_named_and_the_others_decoded(tmp_path, content):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    gradient().save(good)
    bad.write_bytes(content)
    out = torch.zeros(3, 3, 24, 32, dtype=torch.uint8)
    problems = decode_into([str(good), str(bad), str(good)], [0, 1, 2], out, None)
    assert list(problems) == [1]
    assert problems[1]
    assert torch.equal(out[0], out[2])
    assert out[0].float().std() > 0


def test_decoding_with_a_size_resizes_and_cuts_the_centre(tmp_path):
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 40, 20))
    pixels = decode(saved(tmp_path, image, "a.png"), 10)
    assert pixels.shape == (3, 10, 10)
    assert pixels[:, :, 2:8].float().mean() > 250


def test_a_strip_too_long_to_resize_is_refused(tmp_path):
    path = saved(tmp_path, Image.new("L", (60_000, 1)), "a.png")
    assert decode(path).shape == (3, 1, 60_000)
    with pytest.raises(ValueError, match="elongated: 1x60000"):
        decode(path, 224)


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (32, 32, 32, (32, 32, 0, 0)),
        (224, 224, 224, (224, 224, 0, 0)),
        (300, 400, 224, (256, 341, 16, 58)),
        (400, 300, 224, (341, 256, 58, 16)),
        (64, 48, 32, (42, 32, 5, 0)),
        (8, 8, 32, (32, 32, 0, 0)),
        (128, 170, 112, (128, 170, 8, 29)),
        (1, 1000, 32, (32, 32000, 0, 15984)),
    ],
)
def test_geometry(height, width, size, expected):
    assert geometry(height, width, size) == expected


@pytest.mark.parametrize(("shape", "size"), [((40, 56), 24), ((20, 14), 32), ((150, 130), 96)])
def test_memory_and_files_resize_alike(tmp_path, shape, size):
    image = gradient(*shape)
    from_file = decode(saved(tmp_path, image, "a.png"), size)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    from_memory = resize_batch(pixels, size)[0]
    assert from_memory.shape == from_file.shape == (3, size, size)
    assert (from_memory.int() - from_file.int()).abs().max() <= 2


def test_what_is_taken_for_an_image():
    assert is_image_name("a.JPEG")
    assert not is_image_name("a.txt")
    assert not is_image_name("._a.jpg")
    assert not is_image_name("jpg")
