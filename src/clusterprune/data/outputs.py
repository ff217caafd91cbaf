"""Which of a model's outputs each class of the data is, where the model knows more classes than the data have.

A folder of ten ImageNet classes is labelled 0 to 9; a model of all 1,000 calls the same classes 0, 217, 482, …
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from clusterprune.data.dataset import Dataset
from clusterprune.data.split import Split
from clusterprune.errors import DataError
from clusterprune.files.reading import ReadError, parse_json, read_text

IMAGENET = "imagenet"


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1,000 classes, in the order of every model's outputs: the sorted one."""
    return tuple(resources.files("clusterprune.data").joinpath("imagenet_classes.txt").read_text("ascii").split())


def for_outputs(dataset: Dataset, outputs: int, classes: str | None = None) -> Dataset:
    """Return the same data, labelled by a model's outputs.

    Parameters
    ----------
    outputs
        How many the model has.
    classes
        "imagenet": the classes are named by their WordNet ids. Otherwise a file: one class a line, in the order of the
        outputs; or JSON, ``{"class": output, …}``. None finds WordNet ids by itself where there are 1,000 outputs, and
        takes the data as they are where they have a class for each output.

    Raises
    ------
    DataError
        If a class of the data has no output, or two have the same; or the file cannot be read.
    """
    if classes is None and len(dataset.classes) == outputs:
        return dataset
    names = imagenet_classes()
    if classes is None and outputs == len(names) and set(dataset.classes) <= set(names):
        classes = IMAGENET
    if classes is None:
        raise DataError(
            f"the model has {outputs} outputs, but data={dataset.name!r} has {len(dataset.classes)} classes; name data "
            "that the model was trained for, or say by classes which output is which (a file with one class a line, or "
            "'imagenet' for folders named by WordNet ids)"
        )
    order = {name: at for at, name in enumerate(names)} if classes == IMAGENET else _read(Path(classes))
    missing = [name for name in dataset.classes if name not in order]
    if missing:
        raise DataError(
            f"classes={classes!r} has no {missing[0]!r}, which is a class of data={dataset.name!r}"
            f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; give the names of its folders"
        )
    found = [order[name] for name in dataset.classes]
    outside = [at for at in found if not 0 <= at < outputs]
    if outside:
        raise DataError(f"classes={classes!r} names output {outside[0]}, but the model has {outputs}, from 0 on")
    if len(set(found)) < len(found):
        raise DataError(
            f"classes={classes!r} gives two classes of data={dataset.name!r} the same output; give each one"
        )
    named = {at: name for name, at in order.items()}
    all_names = tuple(named.get(at, str(at)) for at in range(outputs))
    splits = {key: _relabelled(split, torch.tensor(found), all_names) for key, split in dataset.splits.items()}
    return replace(dataset, classes=all_names, splits=splits)


def _relabelled(split: Split, outputs: torch.Tensor, names: tuple[str, ...]) -> Split:
    return split if split.labels is None else split.relabelled(outputs, names)


def _read(path: Path) -> Mapping[str, int]:
    try:
        text = read_text(path.expanduser())
        if text.lstrip().startswith(("{", "[")):
            return _checked(path, parse_json(text))
    except ReadError as error:
        raise DataError(
            f"classes={str(path)!r} {error}; give a file with one class a line, or JSON of classes and outputs"
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _checked(path, lines)


def _checked(path: Path, content: Any) -> Mapping[str, int]:
    """Return outputs by class, out of a list of classes or a mapping."""
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        if len(set(content)) < len(content):
            twice = next(name for at, name in enumerate(content) if name in content[:at])
            raise DataError(f"classes={str(path)!r} names {twice!r} twice; give each class one line")
        return {name: at for at, name in enumerate(content)}
    if isinstance(content, dict) and all(type(at) is int for at in content.values()):
        return content
    raise DataError(f"classes={str(path)!r} must hold one class a line, or a mapping of classes to whole numbers")
