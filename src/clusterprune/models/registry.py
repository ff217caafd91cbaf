"""From what a user writes after ``--model`` to a network."""

import functools
from collections.abc import Callable
from dataclasses import replace
from os import PathLike

from torch import nn

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.models import googlenet, resnet, ssd, vgg
from clusterprune.models.code import file_of
from clusterprune.models.heads import head_of
from clusterprune.models.origin import read_origin
from clusterprune.models.sources import from_file, from_timm, from_torchvision, in_torchvision, suggestion
from clusterprune.models.spec import CIFAR_MEAN, CIFAR_SHAPE, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from clusterprune.models.weights import load_weights
from clusterprune.surgery import compact

BUILTIN: dict[str, Callable[..., nn.Module]] = {
    "vgg16": vgg.vgg16,
    "vgg19": vgg.vgg19,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
    "googlenet": googlenet.googlenet,
}
DETECTORS: dict[str, Callable[..., nn.Module]] = {"ssd300": ssd.ssd300, "ssd300_bn": ssd.ssd300_bn}
"""Of 300 pixels, by default for the 20 classes of VOC and the background."""
ON = "@"
"""Between the name of one of these and the folder of a compact classifier that it is built on."""


def names() -> list[str]:
    """Return the names of the built-in classifiers of CIFAR images."""
    return list(BUILTIN)


def resolve(spec: str) -> ModelSpec:
    """Find a model by what the user wrote, without building it.

    Parameters
    ----------
    spec
        A built-in name (:func:`names`), ``torchvision:NAME``, ``timm:NAME`` or
        ``path/to/file.py:factory``. The last runs that file. A built-in detector may be built on the features of a
        compact classifier: ``ssd300_bn@FOLDER``.

    Raises
    ------
    ModelError
        The name is unknown, an optional package is missing, or the file has no such factory.
    ArgumentError
        ``spec`` is not a string.
    """
    if not isinstance(spec, str):
        msg = f"model must be a string such as 'resnet56', but got {type(spec).__name__}."
        raise ArgumentError(msg)
    if spec in BUILTIN:
        return ModelSpec(spec, BUILTIN[spec], CIFAR_SHAPE, CIFAR_MEAN, CIFAR_STD, 10)
    if spec in DETECTORS:
        return ModelSpec(spec, DETECTORS[spec], (3, 300, 300), IMAGENET_MEAN, IMAGENET_STD, 21, head=head_of)
    if spec.partition(ON)[0] in DETECTORS:
        return _on_backbone(spec)
    if spec.startswith("torchvision:"):
        return from_torchvision(spec)
    if spec.startswith("timm:"):
        return from_timm(spec)
    if spec.rpartition(":")[0].endswith(".py") or spec.endswith(".py"):
        return from_file(spec)
    msg = (
        f"model={spec!r} is not known. {_near(spec)}Built-in models: {', '.join([*BUILTIN, *DETECTORS])}. "
        "Others are written torchvision:NAME, timm:NAME or path/to/file.py:factory."
    )
    raise ModelError(msg)


def build(
    spec: str | ModelSpec,
    *,
    num_classes: int | None = None,
    weights: str | PathLike[str] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a network in eval mode, and fill it from a weights file if one is named.

    Parameters
    ----------
    spec
        What :func:`resolve` takes, or what it returned.
    num_classes
        Outputs of the last layer; None leaves the model's default.
    weights
        A file for :func:`clusterprune.models.load_weights`.
    seed
        Seeds the initial weights and leaves the global generator as it was; None draws from it.

    Raises
    ------
    ModelError
        The model cannot be found or built.
    WeightsError
        The weights cannot be read or do not fit.
    ArgumentError
        ``num_classes`` or ``seed`` is not a whole number in range.
    """
    found = spec if isinstance(spec, ModelSpec) else resolve(spec)
    model = found.build(num_classes, seed)
    if weights is not None:
        load_weights(model, weights)
    return model


def _on_backbone(spec: str) -> ModelSpec:
    """Resolve ``NAME@FOLDER``; the network reads what the classifier reads."""
    name, _, folder = spec.partition(ON)
    origin = read_origin(folder)
    if origin is None or file_of(origin.model) is not None:
        raise ModelError(
            f"model={spec!r}: {folder!r} is no compact classifier of a network that clusterprune knows; give the "
            "folder that 'clusterprune compress' calls compact/, or build the detector in a file of yours"
        )
    classifier = compact.load(folder, functools.partial(resolve(origin.model).build, origin.num_classes))
    if not isinstance(features := getattr(classifier, "features", None), nn.Sequential):
        raise ModelError(
            f"model={spec!r}: {origin.model} has no features to build a detector on; give a compact VGG-16"
        )
    whole = resolve(name)

    def factory(num_classes: int = whole.num_classes) -> nn.Module:
        return whole.factory(num_classes, features=features)

    return replace(whole, name=spec, factory=factory, mean=origin.mean, std=origin.std)


def _near(spec: str) -> str:
    """Suggest a close built-in name, or the same name in torchvision."""
    if in_torchvision(spec):
        return f"Did you mean torchvision:{spec}? "
    return suggestion(spec, [*BUILTIN, *DETECTORS])
