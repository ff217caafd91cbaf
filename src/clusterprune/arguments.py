"""Checks of arguments that many public calls have: each error names the argument, its value and the remedy."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from clusterprune.errors import ArgumentError

Public = TypeVar("Public", bound=Callable[..., Any])
LARGEST_SEED = (1 << 63) - 1


def globs(ignore: object) -> tuple[str, ...]:
    """Return the globs of an `ignore` argument. A text is one glob: its letters could not be meant.

    Raises
    ------
    ArgumentError
        If it holds anything but text.
    """
    if isinstance(ignore, str):
        return (ignore,)
    patterns = tuple(ignore) if isinstance(ignore, Iterable) else None
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentError(
            f"ignore must be a glob or a list of globs, such as ['layer1.*'], but got ignore={ignore!r}"
        )
    return patterns


def check_number(name: str, value: object) -> None:
    """Check that an argument is one real number; truth values, text and tensors are none.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name} must be a number, but got {name}={shown(value)}")


def check_seed(seed: object) -> None:
    """Check that a seed is a whole number that PyTorch and NumPy take.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= LARGEST_SEED:
        raise ArgumentError(f"seed must be a whole number from 0 to 2**63 - 1, but got seed={shown(seed)}")


def check_progress(progress: Callable[..., Any] | None) -> None:
    """Check that what is called back can be called.

    Raises
    ------
    ArgumentError
        If it cannot.
    """
    if progress is not None and not callable(progress):
        raise ArgumentError(f"progress must be a function or None, but got progress={shown(progress)}")


def tensors_in(images: object) -> tuple[Tensor, ...]:
    """Return the network's inputs as a tuple of tensors: one tensor, or a tuple or list with one for each input.

    Raises
    ------
    ArgumentError
        If it is anything else; the message says how to make a tensor of it.
    """
    if isinstance(images, Tensor):
        return (images,)
    if isinstance(images, tuple | list) and images and all(isinstance(part, Tensor) for part in images):
        return tuple(images)
    raise ArgumentError(f"images must be a tensor (images, channels, height, width), but got {_how_to(images)}")


def _how_to(images: object) -> str:
    """Say what was given in place of images, and how to make a tensor of it."""
    what = type_name(images)
    if isinstance(images, nn.Module):
        return f"a network, a {what}; give normalised images, or leave them out"
    if hasattr(images, "__array__"):
        return f"images={what}; torch.from_numpy(images) makes one"
    if isinstance(images, str):
        return f"images={images!r}; clusterprune.data.load(images).train.load()[0] reads images, normalize them"
    if hasattr(images, "batches"):
        return f"images={what}; normalize(images.load()[0], mean, std) of clusterprune.data makes one"
    if isinstance(images, tuple | list):
        inside = ", ".join(sorted({type_name(part) for part in images})) or "nothing"
        return f"a {what} of {inside}; torch.stack(images) makes one tensor of images of one size"
    if isinstance(images, dict):
        return "a mapping; give a tuple with one tensor for each input, in the order of the example"
    if hasattr(images, "__iter__") or hasattr(images, "__getitem__"):
        return f"images={what}; torch.cat([batch for batch, _ in images])[:1024] makes one of a loader of batches"
    return f"images={shown(images)}; 256 to 1,024 normalised images are enough"


def type_name(value: object) -> str:
    """Return the name of a value's type."""
    return type(value).__name__


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        return f"{type(value).__name__} of more digits than can be shown"
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_instance(name: str, value: object, expected: type, remedy: str) -> None:
    """Check the type of an argument such as a configuration.

    Raises
    ------
    ArgumentError
        If it is another.
    """
    if not isinstance(value, expected):
        raise ArgumentError(f"{name} must be of the type {expected.__name__}, but got {name}={shown(value)}; {remedy}")


def has_methods(value: object, *methods: str) -> bool:
    """Tell whether a value can do what a protocol asks for: an instance with these methods, of whatever class."""
    return not isinstance(value, type) and all(callable(getattr(value, method, None)) for method in methods)


def make_by_name(what: str, kinds: Mapping[str, type[Any]], name: object, options: Mapping[str, Any]) -> Any:
    """Return an instance of the dataclass that is registered by a name, with the given options.

    Raises
    ------
    ArgumentError
        The name, an option or an option's value does not exist, or a required option is missing; the message lists
        what there is.
    """
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ArgumentError(f"{what} name must be one of {', '.join(kinds)}, but got name={name!r}.")
    known = {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(kind)}
    listed = f"its options are {', '.join(known)}." if known else "it has none."
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ArgumentError(f"{what} {name!r} has no option {', '.join(map(repr, unknown))}; {listed}")
    missing = [option for option, required in known.items() if required and option not in options]
    if missing:
        raise ArgumentError(f"{what} {name!r} needs a value for {', '.join(missing)}; {listed}")
    return kind(**options)


def check_statistics(mean: object, std: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of every image channel as tuples of numbers.

    Raises
    ------
    ArgumentError
        If they are no sequences of finite numbers.
    """
    found = []
    for name, values in (("mean", mean), ("std", std)):
        numbers = _numbers(values)
        if numbers is None or not all(_is_finite(number) for number in numbers):
            number = "positive number" if name == "std" else "number"
            raise ArgumentError(
                f"{name} must have one {number} per channel, such as (0.5, 0.5, 0.5), but got {name}={shown(values)}"
            )
        found.append(numbers)
    return found[0], found[1]


def _numbers(values: Any) -> tuple[Any, ...] | None:
    if not isinstance(values, Iterable) or isinstance(values, str | bytes) or getattr(values, "ndim", 1) != 1:
        return None
    return tuple(values.tolist() if isinstance(values, Tensor) else values)


def _is_finite(number: object) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)


def renamed(**names: str) -> Callable[[Public], Public]:
    """Decorate a function or a class that still takes keywords by the names that they had before, with a warning.

    Parameters
    ----------
    **names
        Today's name by the one before.
    """

    def decorate(public: Public) -> Public:
        inner: Callable[..., Any] = public.__init__ if isinstance(public, type) else public

        @functools.wraps(inner)
        def call(*args: Any, **given: Any) -> Any:
            for before in names.keys() & given.keys():
                now = names[before]
                if now in given:
                    raise ArgumentError(f"{before}={shown(given[before])} is called {now} now, and both are given")
                warnings.warn(f"{before} is called {now} now; the old name will go", FutureWarning, stacklevel=2)
                given[now] = given.pop(before)
            return inner(*args, **given)

        if isinstance(public, type):
            public.__init__ = call
        return cast(Public, public if isinstance(public, type) else call)

    return decorate
