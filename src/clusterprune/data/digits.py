"""The digits that come with scikit-learn: 1797 grey images of 8 x 8 pixels, no download."""

from pathlib import Path

import torch

from clusterprune.data.dataset import Dataset
from clusterprune.data.sampling import holdout
from clusterprune.data.split import Split

CLASSES = tuple("0123456789")

#: The split into 80 % training and 20 % test images is part of the data set and never changes.
TEST_FRACTION = 0.2
SPLIT_SEED = 0


def load_digits(root: Path, image_size: int | None) -> Dataset:  # noqa: ARG001 - one signature for all
    """Open the embedded digits: one channel, values 0..16 spread over 0..255.

    Source: the test part of the UCI "Optical Recognition of Handwritten Digits" data, as shipped
    with scikit-learn.
    """
    # Imported here because scikit-learn takes a second to load, and most runs use other data.
    from sklearn.datasets import load_digits as sklearn_digits

    values, targets = sklearn_digits(return_X_y=True)
    images = torch.from_numpy(values).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    whole = Split.from_tensors(images, torch.from_numpy(targets).long(), CLASSES, image_size)
    train, test = holdout(whole, TEST_FRACTION, SPLIT_SEED)
    return Dataset("digits", CLASSES, {"train": train, "test": test})
