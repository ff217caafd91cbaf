import torch

from clusterprune import data


def test_contents():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    images = digits.train.images()
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert digits.classes == tuple("0123456789")


def test_split_is_stratified_and_fixed():
    first, second = data.load("digits"), data.load("digits")
    assert torch.equal(first.test.images(), second.test.images())
    counts = first.test.load()[1].bincount()
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_parts_are_the_whole():
    digits = data.load("digits")
    assert digits.train.load()[1].bincount().add(digits.test.load()[1].bincount()).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip


def test_image_size():
    digits = data.load("digits", image_size=32)
    assert digits.train.shape == (1, 32, 32)
    assert digits.test.images([0]).shape == (1, 1, 32, 32)
