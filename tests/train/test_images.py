from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from clusterprune import data
from clusterprune.data.crops import resized_crop
from clusterprune.errors import ArgumentError
from clusterprune.tasks import Classification
from clusterprune.train.images import InMemory, Source, Streamed, source

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> data.Split:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(5):
            pixels = torch.randint(256, (6, 6, 3), dtype=torch.uint8, generator=generator)
            path = tmp_path / "train" / name / f"{number}.png"
            Image.fromarray(pixels.numpy()).save(path)
    return data.load(f"folder:{tmp_path}").train


def targets_of(split: data.Split) -> Callable[[Tensor], Tensor]:
    assert split.labels is not None
    return split.labels.__getitem__


def test_memory_and_stream_give_the_same_batches(folder: data.Split) -> None:
    size = 10 * 3 * 6 * 6
    kept = source(folder, targets_of(folder), name="train", channels=3, device=CPU, limit=size)
    streamed = source(folder, targets_of(folder), name="train", channels=3, device=CPU, limit=size - 1)
    assert isinstance(kept, InMemory)
    assert isinstance(streamed, Streamed)
    order = torch.tensor([9, 0, 4, 2, 7])
    batches = list(zip(kept.batches(order, 2), streamed.batches(order, 2), strict=True))
    assert [len(labels) for (_, labels), _ in batches] == [2, 2, 1]
    for (images, labels), (other_images, other_labels) in batches:
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    assert torch.cat([labels for (_, labels), _ in batches]).tolist() == [1, 0, 0, 0, 1]
    assert kept.shape == streamed.shape == (3, 6, 6)


def test_windows_are_of_files_where_there_are_files(folder: data.Split) -> None:
    common: dict[str, Any] = {"name": "train", "channels": 3, "device": CPU, "limit": 1e9, "crops": True}
    assert isinstance(source(folder, targets_of(folder), **common), Streamed)
    pixels = data.Split.from_tensors(folder.images(), folder.labels)
    memory = source(pixels, targets_of(folder), **common)
    assert isinstance(memory, InMemory)
    order, draws = torch.tensor([9, 0, 4]), torch.rand(3, 5)
    windows = torch.cat([images for images, _ in memory.batches(order, 2, draws)])
    assert torch.equal(windows, resized_crop(folder.images()[order], draws))
    streamed = source(pixels, targets_of(folder), **{**common, "limit": 0})
    assert isinstance(streamed, Streamed)
    assert torch.equal(windows, torch.cat([images for images, _ in streamed.batches(order, 2, draws)]))


def prepared(images: Any) -> Source:
    task = Classification(images, mean=(0.5,) * 3, std=(0.5,) * 3)
    return source(task.train, task.targets(task.train), name="train", channels=3, device=CPU, limit=1e9)


PIXELS = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((PIXELS.float(), LABELS), "train: .*uint8.*float32"),
        ((PIXELS[0], LABELS), "train: .*shape"),
        ((PIXELS, LABELS[:3]), "train: .*labels"),
        ((PIXELS, LABELS.float()), "train: .*labels.*float32"),
        ((PIXELS, LABELS - 1), "train: .*labels.*-1"),
        ((PIXELS[:0], LABELS[:0]), "train holds no images"),
        ((PIXELS[:, :2], LABELS), "train has images of 2 channels, but mean and std have 3"),
        ((PIXELS,), "train must be a Split or a pair"),
        (PIXELS, "train must be a Split or a pair"),
        (data.Split.from_tensors(PIXELS), "train has no labels"),
    ],
)
def test_what_is_no_set_of_labelled_images_is_named(images: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        prepared(images)


def test_narrow_labels_and_grey_images_are_welcome() -> None:
    found = prepared((PIXELS[:, :1], LABELS.byte()))
    assert found.targets(torch.arange(4)).dtype == torch.int64
    assert found.shape == (1, 8, 8)
