"""From an image file to pixels, many files at a time.

Pillow does the decoding. torchvision's own decoders are about as fast, but read fewer formats and
are deprecated since torchvision 0.29.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterprune.data.crops import mirrored, windows
from clusterprune.data.resize import geometry
from clusterprune.files.reading import MAX_PIXELS, open_regular

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

OnRead = Callable[[int, int], None]

#: Files per task: a small image takes a fraction of a millisecond, less than a task costs.
_CHUNK = 32
_MAX_WORKERS = 16
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what :data:`EXTENSIONS` promise. Others are not tried: a PostScript file called .png would start a
program that runs it."""
_MAX_FILE_BYTES = 1 << 29
"""Of one image; some formats are read whole before anything is known of them."""
_PREFIX = 16
"""Bytes that a format is recognised by."""


class _Room:
    """Lets threads decode at once as long as their images together have no more than the pixels of the largest one."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._freed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        with self._freed:
            self._freed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._free += pixels
                self._freed.notify_all()


_room = _Room(MAX_PIXELS)
if hasattr(os, "register_at_fork"):

    def _renew() -> None:
        """Give a forked process room of its own: the threads that would give theirs back are not in it."""
        global _room  # noqa: PLW0603
        _room = _Room(MAX_PIXELS)

    os.register_at_fork(after_in_child=_renew)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image (hidden files are not)."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def _deep_to_byte(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey values to 0..255 (Pillow's conversion would clip)."""
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise ValueError("has pixels that are not finite numbers")
        unit = values.size and values.min() >= 0 and values.max() <= 1
        scale = 255.0 if unit else 1.0
    else:
        # Mode "I" holds 16-bit files in 32 bits; a small maximum means 8-bit values in a wide file.
        wide = image.mode.startswith("I;16") or (values.size and values.max() > 255)
        scale = 1 / 257 if wide else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB. Transparency is dropped, not blended."""
    if image.mode == "RGB":
        return image
    if image.mode[0] in "IF":
        image = _deep_to_byte(image)
    elif image.mode in {"P", "PA"} and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency it loses
    return image.convert("RGB")


def decode(path: str, size: int | None = None, crop: Tensor | None = None, *, whole: bool = False) -> Tensor:
    """Read one file as RGB ``uint8`` (3, h, w), or (3, size, size) when ``size`` is given.

    With ``crop``, the draws (5,) of a :func:`~clusterprune.data.crops.resized_crop`, it is a window of the file.
    With ``whole``, nothing is cut off: the image is stretched to the square.

    The orientation that cameras note in EXIF is not applied, as in torchvision's ``ImageFolder``;
    of an animation, the first frame counts.
    """
    with open_regular(path) as file:
        if (length := os.fstat(file.fileno()).st_size) > _MAX_FILE_BYTES:
            raise ValueError(f"holds {length:,} bytes, more than the {_MAX_FILE_BYTES:,} that are read")
        opened = _identify(file)
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"has {width:,} x {height:,} = {width * height:,} pixels, more than the {MAX_PIXELS:,} that are read; "
                "make it smaller"
            )
        if size is not None and crop is None and not whole:
            target = geometry(height, width, size)
            # A strip resized by its short side could fill the memory.
            if target.height * target.width > MAX_PIXELS:
                raise ValueError(f"is too elongated: {height}x{width}")
        with _room.take(width * height):
            return _pixels(opened, size, crop, whole=whole)


def shape_of(path: str) -> tuple[int, int, int]:
    """Return channels, height and width of what :func:`decode` would return, by the file's header alone."""
    with open_regular(path) as file:
        width, height = _identify(file).size
    return 3, height, width


def _identify(file: IO[bytes]) -> Image.Image:
    """Read the header of an image, nothing more.

    As `Image.open` does, which would also warn of large images: for all of them, and only once.
    """
    Image.init()
    prefix = file.read(_PREFIX)
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        answer = accept is None or accept(prefix)
        if not answer or isinstance(answer, str):  # a string says what is missing to read the format
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise Image.UnidentifiedImageError


def _pixels(opened: Image.Image, size: int | None, crop: Tensor | None, *, whole: bool) -> Tensor:
    """Decode an opened image, as :func:`decode` returns it."""
    image = to_rgb(opened)
    if crop is not None:
        image = _crop(image, size, crop[None])
    elif size is not None and whole:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    elif size is not None and image.size != (size, size):
        target = geometry(image.height, image.width, size)
        image = image.resize((target.width, target.height), Image.Resampling.BILINEAR)
        left, top = target.left, target.top
        image = image.crop((left, top, left + size, top + size))
    pixels = np.frombuffer(bytearray(image.tobytes()), dtype=np.uint8)
    return torch.from_numpy(pixels).view(image.height, image.width, 3).permute(2, 0, 1)


def _crop(image: Image.Image, size: int | None, draws: Tensor) -> Image.Image:
    """Bring a random window of an image to a square, or to the size of the whole image."""
    left, top, across, down = windows(draws, image.height, image.width)[0].tolist()
    right, bottom = min(1.0, left + across), min(1.0, top + down)
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    target = image.size if size is None else (size, size)
    image = image.resize(target, Image.Resampling.BILINEAR, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored(draws)[0] else image


def explain(error: Exception) -> str:
    """One line on why a file could not be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image of a known format"
    text = str(error).splitlines()[0] if str(error) else ""
    return text or type(error).__name__


def _decode_chunk(
    paths: Sequence[str], rows: Sequence[int], out: Tensor, size: int | None, crops: Tensor | None, *, whole: bool
) -> dict[int, str]:
    shape = out.shape[1:]
    problems: dict[int, str] = {}
    for path, row in zip(paths, rows, strict=True):
        try:
            image = decode(path, size, None if crops is None else crops[row], whole=whole)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            problems[row] = explain(error)
        else:
            if image.shape != shape:
                raise MixedSizesError(path, (image.shape[1], image.shape[2]))
            out[row] = image
    return problems


class MixedSizesError(Exception):
    """An image has another shape than the room for it. Never leaves this package."""

    def __init__(self, path: str, shape: tuple[int, int]) -> None:
        super().__init__(path, shape)
        self.path = path
        self.shape = shape


def workers() -> int:
    """How many threads decode: one per core this process may use, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(_MAX_WORKERS, cores)


def decode_into(
    paths: Sequence[str],
    rows: Sequence[int],
    out: Tensor,
    size: int | None,
    progress: OnRead | None = None,
    crops: Tensor | None = None,
    *,
    whole: bool = False,
) -> dict[int, str]:
    """Decode ``paths`` into ``out[rows]`` with a pool of threads.

    Parameters
    ----------
    paths, rows
        Files, and the row of ``out`` that each goes to.
    out
        ``uint8`` (n, 3, h, w), written in place.
    size, whole
        Passed to :func:`decode`.
    progress
        Called as ``progress(done, total)`` from the calling thread.
    crops
        Draws of a random crop for every row of ``out``, (n, 5).

    Returns
    -------
    dict
        Row to reason, for the files that cannot be read. Their rows of ``out`` are undefined.

    Raises
    ------
    MixedSizesError
        When an image does not have the shape of ``out``'s rows.
    """
    starts = range(0, len(paths), _CHUNK)
    pieces = [(paths[s : s + _CHUNK], rows[s : s + _CHUNK]) for s in starts]
    problems: dict[int, str] = {}
    done = 0
    if len(pieces) < 2:
        for some, where in pieces:
            problems |= _decode_chunk(some, where, out, size, crops, whole=whole)
            if progress:
                progress(len(some), len(paths))
        return problems
    # A pool per call: a shared one would not survive a fork of the process.
    pool = ThreadPoolExecutor(workers(), thread_name_prefix="clusterprune-decode")
    try:
        tasks = [pool.submit(_decode_chunk, some, where, out, size, crops, whole=whole) for some, where in pieces]
        for task, (some, _) in zip(tasks, pieces, strict=True):
            problems |= task.result()
            done += len(some)
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return problems
