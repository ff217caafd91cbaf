"""Names on the command line such that they mean the same from every folder: what a run notes of itself."""

from pathlib import Path
from typing import Any

from clusterprune.data.outputs import IMAGENET
from clusterprune.models.registry import DETECTORS, ON


def absolute_model(name: str) -> str:
    """Return a model's name such that it means the same from every folder."""
    path, colon, factory = name.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).expanduser().resolve()}:{factory}"
    detector, on, folder = name.partition(ON)
    return f"{detector}{on}{Path(folder).expanduser().resolve()}" if on and detector in DETECTORS else name


def _absolute_method(text: str) -> str:
    """Return a method's name, and what is said of its settings behind it, with the absolute path of its file."""
    file, name, *more = text.split(":")
    return ":".join([absolute_model(f"{file}:{name}"), *more]) if file.endswith(".py") else text


def absolute_data(name: str) -> str:
    """Return a data set's name such that it means the same from every folder."""
    kind, colon, folder = name.partition(":")
    return f"{kind}:{Path(folder).expanduser().resolve()}" if colon and folder else name


def absolute_storage(name: str) -> str:
    """Return a storage's name such that it means the same from every folder; a server's URL is left as it is."""
    file = name.removeprefix("sqlite:///")
    return name if "://" in file else f"sqlite:///{Path(file).expanduser().resolve()}"


def absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run such that they mean the same from every folder."""
    found = dict(options)
    if found.get("model"):
        found["model"] = absolute_model(found["model"])
    for name in ("method", "methods"):
        if ".py:" in str(found.get(name)):
            found[name] = ",".join(_absolute_method(one) for one in found[name].split(","))
    if found.get("data"):
        found["data"] = absolute_data(found["data"])
    for name in ("weights", "calibration", "classes"):
        if found.get(name) is not None and found[name] != IMAGENET:
            found[name] = str(Path(found[name]).expanduser().resolve())
    if found.get("storage"):
        found["storage"] = absolute_storage(found["storage"])
    return found
