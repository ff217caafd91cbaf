"""Models from elsewhere: torchvision, timm and a user's own file."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from clusterprune.errors import ModelError
from clusterprune.models.code import importable, run_file
from clusterprune.models.heads import head_of
from clusterprune.models.spec import IMAGENET_SHAPE, ModelSpec, usual_statistics
from clusterprune.models.tensor_part import TensorPart, read_at
from clusterprune.tasks import Head, OwnHead

# torchvision's pretrained GoogLeNet and Inception v3 turn ImageNet's normalisation into this one
# inside forward (transform_input); built without that step, they read it directly.
INCEPTION_STATISTICS = (0.5, 0.5, 0.5)

_MORE_THAN_BOXES = ("maskrcnn", "keypointrcnn")
"""Whose further heads no :class:`TensorPart` runs."""

STATED = {"input_shape": "INPUT_SHAPE", "mean": "MEAN", "std": "STD"}
"""What a model's file may state of its input, by the name that a :class:`ModelSpec` has for it."""


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return "Did you mean a, b? " for the names close to ``word``, or nothing."""
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=3)
    return f"Did you mean {', '.join(by_folded[name] for name in close)}? " if close else ""


def in_torchvision(name: str) -> bool:
    """Tell whether torchvision has a network of this name."""
    return name in _torchvision().list_models()


def _torchvision() -> ModuleType:
    from torchvision import models  # whose import takes seconds

    return models


def from_torchvision(spec: str) -> ModelSpec:
    """Resolve ``torchvision:NAME``: image classifiers, semantic segmentation and detectors of boxes, random weights.

    Input size and statistics are those of the first weights that torchvision published for the
    network. Auxiliary heads are left out. A detector comes as its
    :class:`clusterprune.models.tensor_part.TensorPart`.
    """
    models, name = _torchvision(), spec.partition(":")[2]
    classifiers = models.list_models(module=models)
    segmenters = models.list_models(module=models.segmentation)
    detectors = [one for one in models.list_models(module=models.detection) if not one.startswith(_MORE_THAN_BOXES)]
    if name in detectors:
        return _detector(spec, name)
    if name not in (*classifiers, *segmenters):
        if name in models.list_models():
            remedy = (
                "It is no image classifier, segmentation network or detector of boxes: write a factory for it in a "
                "file of yours and name that, path/to/file.py:factory."
            )
        else:
            close = suggestion(name, [*classifiers, *segmenters, *detectors])
            remedy = f"{close}torchvision.models.list_models() lists the names."
        msg = f"model={spec!r}: torchvision has no usable model {name!r}. {remedy}"
        raise ModelError(msg)

    published = next(iter(models.get_model_weights(name)))
    transforms = published.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    options: dict[str, Any] = {"weights": None}
    if name in segmenters:
        size = transforms.resize_size[0]
        options["weights_backbone"] = None  # its default would be downloaded
    else:
        size = transforms.crop_size[0]
    if name.startswith("vit_"):
        options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False, "transform_input": False}
        mean = std = INCEPTION_STATISTICS
    default = len(published.meta["categories"])

    def factory(num_classes: int = default) -> nn.Module:
        return models.get_model(name, num_classes=num_classes, **options)

    return ModelSpec(spec, factory, (3, size, size), mean, std, default)


def _detector(spec: str, name: str) -> ModelSpec:
    models = _torchvision()
    build = functools.partial(models.get_model, name, weights=None, weights_backbone=None)
    reads = cast("Any", build(num_classes=2)).transform  # says what it reads; its weights' transforms do not
    size = reads.min_size[0]
    default = len(next(iter(models.get_model_weights(name))).meta["categories"])

    def factory(num_classes: int = default) -> nn.Module:
        return TensorPart(build(num_classes=num_classes))

    return ModelSpec(
        spec, factory, (3, size, size), tuple(reads.image_mean), tuple(reads.image_std), default, head=head_of,
        resize=read_at,
    )  # fmt: skip


def from_timm(spec: str) -> ModelSpec:
    """Resolve ``timm:NAME`` or ``timm:NAME.TAG``, random weights.

    Input size, statistics and number of classes come from timm's pretrained_cfg of that name.
    """
    try:
        import timm
    except ImportError as error:
        msg = f"model={spec!r} needs timm: pip install 'clusterprune[timm]'."
        raise ModelError(msg) from error

    name = spec.partition(":")[2]
    if not timm.is_model(name):
        close = suggestion(name, timm.list_models())
        msg = f"model={spec!r}: timm has no model {name!r}. {close}timm.list_models() lists the names."
        raise ModelError(msg)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        msg = (
            f"model={spec!r}: {error} Write timm:{architecture}, or take a tag from "
            f"timm.list_pretrained({architecture + '.*'!r})."
        )
        raise ModelError(msg) from error

    def factory(**options: Any) -> nn.Module:
        return timm.create_model(name, pretrained=False, **options)

    if config is None:
        return ModelSpec(spec, factory, assumed=frozenset(STATED))
    channels, height, width = config.input_size
    return ModelSpec(
        spec,
        factory,
        (channels, height, width),
        tuple(config.mean),
        tuple(config.std),
        config.num_classes or 0,
    )


def from_file(spec: str) -> ModelSpec:
    """Resolve ``path/to/file.py:factory``, running that file.

    The file may state ``INPUT_SHAPE`` (channels, height, width), ``MEAN``, ``STD`` and
    ``NUM_CLASSES``; without them an input of (3, 224, 224) with ImageNet's statistics is assumed, which the spec's
    `assumed` says. It may import the files beside it. Of a detector it may have functions ``decode(outputs)``,
    ``loss(outputs, targets)`` and ``metric(outputs, targets)``, see :class:`clusterprune.tasks.OwnHead`.
    """
    path, _, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        msg = f"model={spec!r}: there is no file {str(file)!r}. Check the path."
        raise ModelError(msg)
    module = run_file(file, spec)
    factory: Any = getattr(module, name, None) if name else None
    if not _is_factory(factory):
        raise ModelError(_why_no_factory(spec, name, factory, module))

    # The wrapper keeps the signature: ModelSpec asks it whether it takes num_classes.
    @functools.wraps(factory, updated=())
    def call(*args: Any, **options: Any) -> nn.Module:
        with importable(file.parent):
            return factory(*args, **options)

    shape = _numbers(module, "INPUT_SHAPE", IMAGENET_SHAPE, spec)
    mean, std = usual_statistics(shape[0] if shape else 0)
    return ModelSpec(
        spec,
        call,
        shape,  # pyright: ignore[reportArgumentType]  (ModelSpec checks its length)
        _numbers(module, "MEAN", mean, spec),
        _numbers(module, "STD", std, spec),
        getattr(module, "NUM_CLASSES", _default_num_classes(factory)),
        frozenset(name for name, word in STATED.items() if not hasattr(module, word)),
        _head(module),
    )


def _head(module: ModuleType) -> Callable[[Any], Head]:
    """Return how to tell what a network's outputs mean: by the functions of its file, or as the network itself says."""
    decode = getattr(module, "decode", None)
    if callable(decode):
        # What it returns is looked at when it is called.
        own = OwnHead(decode, getattr(module, "loss", None), getattr(module, "metric", None))  # pyright: ignore[reportArgumentType]
        return lambda _: own
    return head_of


def _is_factory(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _why_no_factory(spec: str, name: str, value: object, module: ModuleType) -> str:
    if isinstance(value, nn.Module):
        return (
            f"model={spec!r}: {name} is a network already built; name a function or class that "
            f"returns a new one, such as def build(): return {type(value).__name__}(...)."
        )
    own = [
        key
        for key, entry in vars(module).items()
        if callable(entry) and not key.startswith("_") and getattr(entry, "__module__", "") == module.__name__
    ]
    defined = f"The file defines {', '.join(own) or 'no function or class'}."
    if not name:
        return f"model={spec!r} names no factory: write path/to/file.py:factory. {defined}"
    what = "defines no" if value is None else f"has a {type(value).__name__}, not a factory, as"
    return f"model={spec!r}: the file {what} {name!r}. {suggestion(name, own)}{defined}"


def _numbers(module: ModuleType, name: str, default: Sequence[float], spec: str) -> tuple[Any, ...]:
    value = getattr(module, name, default)
    if not isinstance(value, Sequence) or not all(isinstance(n, int | float) for n in value):
        msg = f"model={spec!r}: {name} in the file must be a tuple of numbers, but is {value!r}."
        raise ModelError(msg)
    return tuple(value)


def _default_num_classes(factory: Callable[..., object]) -> int:
    try:
        parameter = inspect.signature(factory).parameters.get("num_classes")
    except (TypeError, ValueError):  # callables written in C may have no signature
        return 0
    return parameter.default if parameter and isinstance(parameter.default, int) else 0
