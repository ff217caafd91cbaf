"""What a worker must know to join a search: noted in the study by the run that begins it, and checked when read."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from clusterprune.cli.absolute import absolute
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, DataError, WeightsError
from clusterprune.methods import Network
from clusterprune.models.code import CodeDigest, digest_of_code
from clusterprune.plan import digest_of
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig


class Job(BaseModel):
    """What the workers of a run share.

    Attributes
    ----------
    model, weights, data, image_size, num_classes, mean, std, classes, validation, seed, approximate
        Options of ``clusterprune compress``, with absolute paths.
    method, settings
        Its name, and its settings as plain values; without the storage and the study.
    training
        Fields of :class:`clusterprune.train.TrainConfig`; without the device.
    code
        What the model's own Python file was, where it has one.
    weights_digest, train_digest, validation_digest
        Of the network's weights; number of images, and a digest of what they show.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weights: str | None
    data: str
    image_size: int | None
    num_classes: int | None
    mean: str | None = None
    std: str | None = None
    classes: str | None = None
    validation: float
    seed: int
    approximate: bool = False
    method: str
    settings: dict[str, Any]
    training: dict[str, Any]
    code: CodeDigest | None = None
    weights_digest: str
    train_digest: str
    validation_digest: str

    @classmethod
    def read(cls, about: Mapping[str, Any] | None, where: str) -> Self:
        """Read what a study says about its run.

        Raises
        ------
        ArgumentError
            If it says nothing, or something else.
        """
        try:
            return cls.model_validate(about)
        except ValidationError:
            raise ArgumentError(
                f"{where} does not say what its run works on; it was not begun by this release's "
                "'clusterprune compress'"
            ) from None

    def check_same(self, other: "Job") -> None:
        """Check that a run does what the search that it finds was begun for; only paths may differ.

        Raises
        ------
        ArgumentError
            If it does something else.
        """
        paths = {"model", "weights", "data"}
        here, there = (json.loads(job.model_dump_json(exclude=paths)) for job in (self, other))
        if different := [name for name in here if here[name] != there[name]]:
            raise ArgumentError(
                f"there is a search of this name already, begun with another {', '.join(different)}; give another "
                "--study, or another --storage"
            )

    def check(self, network: Network, task: Task) -> None:
        """Check that weights and images are the run's.

        Raises
        ------
        WeightsError, DataError
            If they are others.
        """
        if digest_of(network.model) != self.weights_digest:
            raise WeightsError(
                "these weights are not the ones that the search was begun with; name the same file as --weights"
            )
        here = {"train": task.train, "validation": task.validation}
        for name, split in here.items():
            if (found := _describe(split)) != (expected := getattr(self, f"{name}_digest")):
                raise DataError(
                    f"the {name} images are not the ones that the search was begun with: {found} here, {expected} "
                    "there; name the same data as --data"
                )


def describe(
    wanted: Mapping[str, Any], settings: Mapping[str, Any], training: TrainConfig, network: Network, task: Task
) -> Job:
    """Return what a run with the options `wanted` tells its workers."""
    wanted = absolute(dict(wanted))
    named = set(Job.model_fields) & wanted.keys()
    return Job(
        **{name: wanted[name] for name in named},
        settings={name: value for name, value in settings.items() if name not in ("storage", "study")},
        training=training.model_dump(mode="json", exclude={"device"}),
        code=digest_of_code(wanted["model"]),
        weights_digest=digest_of(network.model),
        train_digest=_describe(task.train),
        validation_digest=_describe(task.validation),
    )


def _describe(split: Split | None) -> str:
    return "none" if split is None else f"{len(split)} images, {split.digest}"
