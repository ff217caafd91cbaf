"""What a study is: a sweep over settings, a row of numbers for each, and the figure that a paper draws of them.

A study is a frozen dataclass whose fields are what it sweeps over. Everything else, the network and the images it is
run on among it, is the caller's: the papers' figures are ones of many.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from clusterprune import data, evaluate
from clusterprune.arguments import shown
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.files.locking import alone
from clusterprune.files.tables import write_csv
from clusterprune.files.writing import begun_with, read_record, run_folder, write_json
from clusterprune.methods._work import Network, Watch, unwatched
from clusterprune.studies.figures.drawing import Drawing
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig

Row = dict[str, Any]
"""Numbers and texts by name, as JSON has them; what was swept over stands first."""

ASKED_NAME, TABLE_NAME, ROWS_NAME = "asked.json", "study.csv", "study.json"


@dataclass(frozen=True, eq=False)
class Subject:
    """What a study is run on.

    Attributes
    ----------
    network
        Trained, unless the study trains from random weights.
    task
        With the images to train on, and held-out ones for what chooses.
    test
        Images for the accuracies of the rows; None leaves these out.
    training
        Of what is trained; None where nothing may be, and studies that need it refuse.
    images
        How many training images feature maps are averaged over.
    seed
        Of everything.
    watch
        Told what trainings report.
    memory
        What a study has gathered once for all its points.
    """

    network: Network
    task: Task
    test: Split | None = None
    training: TrainConfig | None = None
    images: int = 256
    seed: int = 0
    watch: Watch = unwatched
    memory: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> Tensor:
        """Return the normalised training images that feature maps are of."""
        some = data.sample(self.task.train, min(self.images, len(self.task.train)), self.seed)
        pixels = some.load()[0]
        return self.task.normalize(pixels).to(self.network.example.device)

    def needed(self, study: str) -> TrainConfig:
        """Return the training, of a study that cannot do without."""
        if self.training is None:
            raise ArgumentError(f"study={study!r} trains networks; give epochs")
        return self.training

    def worth(self, model: Any) -> Row:
        """Return what a network costs, and its accuracy on the test images."""
        found: Row = {
            "macs": evaluate.macs(model, self.network.example),
            "params": evaluate.params(model),
        }
        if self.test is not None:
            found["accuracy"] = evaluate.metrics(model, self.task, self.test).deciding
        return found


@dataclass(frozen=True)
class Study:
    """A sweep, and its figure. A study of one's own defines :meth:`points`, :meth:`measure` and :meth:`draw`.

    What the class says of itself:

    - `name`, by which it is asked for.
    - `shows`: the figure or table of a paper.
    - `finding`: what the paper reads from it, in a sentence.
    - `trains`: whether it needs a training.
    - `looks`: whether it needs a network and images at all.
    """

    name: ClassVar[str] = ""
    shows: ClassVar[str] = ""
    finding: ClassVar[str] = ""
    trains: ClassVar[bool] = False
    looks: ClassVar[bool] = True

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Make it from plain values; lists become tuples.

        Raises
        ------
        ArgumentError
            If a setting does not exist.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ArgumentError(f"study={cls.name!r} has no setting {name!r}; it has {', '.join(known) or 'none'}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    def points(self) -> list[Row]:
        """Return what is measured, one after the other: settings as JSON has them."""
        raise NotImplementedError

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Return the rows of a point, without what the point says itself.

        Parameters
        ----------
        folder
            For what a training leaves, and goes on from.
        """
        raise NotImplementedError

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw the figure of all rows."""
        raise NotImplementedError

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say in a sentence whether the paper's finding holds in these rows; empty where that cannot be told."""
        del rows
        return ""


@dataclass(frozen=True, eq=False)
class Studied:
    """What came out of a study.

    Attributes
    ----------
    study
        As it was run.
    rows
        Of all its points, in their order.
    folder
        Where study.csv, study.json and figure.svg and .png are.
    """

    study: Study
    rows: list[Row]
    folder: Path

    def __repr__(self) -> str:
        """Say which study, and of how many rows."""
        return f"<Study {self.study.name} ({self.study.shows}): {len(self.rows)} rows in {self.folder}>"

    @property
    def verdict(self) -> str:
        """Whether the paper's finding holds here, in a sentence."""
        return self.study.verdict(self.rows)


def run(study: Study, subject: Subject | None, out: str | Path, *, about: Mapping[str, Any] | None = None) -> Studied:
    """Measure what a study sweeps over, and draw it. What is finished in `out` is not measured again.

    Parameters
    ----------
    subject
        None for studies that look at no network.
    out
        Folder for ``study.csv``, ``study.json``, ``figure.svg`` and ``figure.png``; in ``points/`` is what each point
        left.
    about
        What else a run must have in common with one that it goes on with, as JSON has it: where network and images are
        from.

    Raises
    ------
    ArgumentError
        If the study needs what the subject lacks.
    OutputError
        If `out` was begun with another study, or other settings.
    """
    if study.looks and subject is None:
        raise ArgumentError(f"study={study.name!r} looks at a network; give a subject")
    if study.trains and subject is not None:
        subject.needed(study.name)
    rows: list[Row] = []
    with run_folder(out) as folder, alone(folder):
        _same(folder, study, subject, about or {})
        for number, point in enumerate(study.points()):
            place = folder / "points" / f"{number:03}"
            done = place / ROWS_NAME
            if not done.exists():
                place.mkdir(parents=True, exist_ok=True)
                # Of studies that look at nothing, `measure` looks at no subject either.
                write_json(done, {"rows": study.measure(subject, point, place)})  # type: ignore[arg-type]
            rows += [{**point, **row} for row in read_record(done, dict[str, Any])["rows"]]
        _write(folder, study, rows)
    return Studied(study, rows, folder)


def _same(folder: Path, study: Study, subject: Subject | None, about: Mapping[str, Any]) -> None:
    asked: Row = {"study": study.name, "settings": _plain(asdict(study)), **about}
    if subject is not None:
        training = None if subject.training is None else subject.training.model_dump(mode="json", exclude={"device"})
        asked |= {"training": training, "images": subject.images, "seed": subject.seed}
    found = begun_with(folder / ASKED_NAME, _plain(asked))
    if found is None:
        return
    before, now = found
    differ = [name for name in now if before.get(name) != now[name]]
    if differ:
        raise OutputError(
            f"out={str(folder)!r} was begun with another {', another '.join(differ)} "
            f"({shown(before.get(differ[0]))}); choose another folder"
        )


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _write(folder: Path, study: Study, rows: list[Row]) -> None:
    """Write table, numbers and figure."""
    plain = [{k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()} for row in rows]
    write_csv(plain, folder / TABLE_NAME)
    said = {"name": study.name, "shows": study.shows, "finding": study.finding, "here": study.verdict(rows)}
    write_json(folder / ROWS_NAME, {**said, "settings": _plain(asdict(study)), "rows": rows})
    drawing = Drawing(study.shows)
    study.draw(rows, drawing)
    drawing.save(folder)


def seeded(training: TrainConfig, seed: int) -> TrainConfig:
    """Return the training with a seed."""
    return training.changed(seed=seed)
