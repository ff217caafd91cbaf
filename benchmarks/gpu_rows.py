"""Rows of the papers' tables on a lent card: in the time that there is, in the order of their worth.

Claim under test: trained as their recipes say, the published rows on CIFAR-10 come out as published, or the difference
is known; and a reproduction takes minutes of one card.

    python benchmarks/gpu_rows.py --images cifar10-jpeg.tar.xz --keep ROWS --minutes 12

The package, PyTorch and one archive of images (train/ and test/, one folder per class) are all that it needs. First it
times an epoch of every network on this card and says what will fit. Then it trains, row by row, and stops by itself in
time. ROWS is what must last: checkpoints and finished rows, in files of less than 16 MB, from which another call goes
on, on another card too; and rows.json, published beside measured. Rows of one network share its original, trained once
by the first row's recipe. JPEG copies of CIFAR-10, as this archive's, cost a network two to three points: drops can be
compared with the papers', accuracies only with that in mind. A row that ``--epochs-scale`` or ``--limit`` made a trial
of is said to be one.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from clusterprune import data, models, runs, studies
from clusterprune.data import Dataset
from clusterprune.files.reading import sha256_of
from clusterprune.methods import find
from clusterprune.studies import Recipe, Reproduction
from clusterprune.tasks import Classification
from clusterprune.train import Progress, TrainConfig, fit

ROWS = (
    "icp-vgg16-cifar10-0.010",
    "cp-resnet56-cifar10-50",
    "icp-resnet56-cifar10-0.025",
    "acp-resnet56-cifar10-0.035",
    "cp-vgg16-cifar10-40",
    "icp-vgg16-cifar10-0.020",
    "acp-vgg16-cifar10-0.020",
    "icp-resnet56-cifar10-0.040",
)
"""In the order of their worth: a row of each method and network first."""
PART = 15 * 2**20
"""Bytes; what leaves a lent machine leaves in files of less than 16 MB."""
TIMED_STEPS = 60
"""Steps of the second epoch that an epoch's time is taken from; the first warms up and records."""
SPARE = 20.0
"""Seconds for saving and packing at the end."""


@dataclass(frozen=True)
class Row:
    """A recipe, and what it will take on this card."""

    recipe: Recipe
    seconds_per_image: float
    images: int
    needs_original: bool

    @property
    def minutes(self) -> float:
        """All its trainings; ICP's at full width, so that it is a little too much."""
        return self.epochs * self.images * self.seconds_per_image / 60

    @property
    def epochs(self) -> float:
        """Epochs that it trains for, those of the original included where that is still to be trained."""
        recipe, found = self.recipe, find(self.recipe.method).read(self.recipe.settings)
        training = 0 if recipe.training is None else recipe.training.epochs
        between = getattr(found, "steps", 0) * getattr(found, "epochs_between", 0)
        tried = getattr(found, "particles", 0) * (getattr(found, "cycles", 0) + 1) * getattr(found, "fitness_epochs", 0)
        original = recipe.baseline.epochs if self.needs_original else 0
        return original + (training + between + tried) * len(recipe.seeds)


def unpack(kept: Path, work: Path) -> None:
    """Put what was kept back together."""
    for path in sorted(kept.rglob("*")):
        name = path.relative_to(kept)
        if path.is_dir():
            continue
        whole, _, part = path.name.rpartition(".part-")
        target = work / name.parent / (whole if whole and part.isdigit() else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        first = not (whole and part.isdigit()) or int(part) == 0
        with target.open("wb" if first else "ab") as file:
            file.write(path.read_bytes())


def pack(work: Path, kept: Path) -> None:
    """Leave everything in `work` in `kept`, large files in parts; what was there before is replaced at the end."""
    fresh = kept.with_name(kept.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for path in sorted(work.rglob("*")):
        if path.is_dir() or path.name.endswith(".lock"):
            continue
        target = fresh / path.relative_to(work)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        if len(content) <= PART:
            target.write_bytes(content)
            continue
        for number, start in enumerate(range(0, len(content), PART)):
            target.with_name(f"{target.name}.part-{number:03}").write_bytes(content[start : start + PART])
    before = kept.with_name(kept.name + ".old")
    shutil.rmtree(before, ignore_errors=True)
    if kept.exists():
        kept.rename(before)
    fresh.rename(kept)
    shutil.rmtree(before, ignore_errors=True)


def images_of(archive: Path, place: Path) -> Dataset:
    """Unpack an archive of images, or take a folder, and open what holds train/ and test/."""
    if archive.is_dir():
        folder = archive
    else:
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
        folder = next(path.parent for path in sorted(place.rglob("train")) if path.is_dir())
    return data.load(f"folder:{folder}", image_size=32)


def seconds_per_image(name: str, dataset: Dataset, config: TrainConfig, images: int) -> float:
    """Return the seconds that an image costs in training, of the second of two short epochs."""
    count = min(images, TIMED_STEPS * config.batch_size)
    spec = models.resolve(name)
    model = models.build(spec, num_classes=len(dataset.classes), seed=0)
    task = Classification(data.sample(dataset.train, count, 0), mean=spec.mean, std=spec.std)
    short = TrainConfig(**{**config.model_dump(), "epochs": 2, "warmup_epochs": 0.0})
    return fit(model, task, short).history[1]["seconds"] / count


@contextlib.contextmanager
def ends_at(deadline: float) -> Iterator[None]:
    """Interrupt what runs when the time is over, as Ctrl-C does: the state after the last whole step is saved."""

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def entry(found: Reproduction, seconds: float) -> dict[str, Any]:
    """Return a finished row for rows.json."""
    accuracy = found.over_seeds(lambda one: one.accuracy)
    published = found.recipe.published
    before = found.baseline
    return {
        "trial": found.trial,
        "seeds": list(found.compressed),
        "published": None if published is None else published.model_dump(),
        "measured": {
            "baseline": before.accuracy,
            "accuracy": accuracy,
            "drop": before.accuracy - accuracy[0],
            "macs_removed": 100 * (1 - found.over_seeds(lambda one: one.macs)[0] / before.macs),
            "params_removed": 100 * (1 - found.over_seeds(lambda one: one.params)[0] / before.params),
        },
        "seconds_of_the_last_call": round(seconds, 1),
    }


def table(rows: dict[str, Any]) -> Table:
    """Lay out published beside measured."""
    made = Table(title="Published | measured, in percent")
    for title in ("row", "accuracy before", "after", "drop", "MACs removed", "parameters removed", ""):
        made.add_column(title, justify="left" if title in ("row", "") else "right")
    for name, row in rows.items():
        ours, theirs = row["measured"], row["published"] or {}
        mean, spread = ours["accuracy"]
        after = f"{mean:.2f}" + (f" ±{spread:.2f}" if spread is not None else "")
        made.add_row(
            name,
            f"{(theirs.get('baseline') or {}).get('accuracy', '')} | {ours['baseline']:.2f}",
            f"{(theirs.get('compressed') or {}).get('accuracy', '')} | {after}",
            f"{theirs.get('drop', '')} | {ours['drop']:.2f}",
            f"{theirs.get('macs_removed') or ''} | {ours['macs_removed']:.2f}",
            f"{theirs.get('params_removed') or ''} | {ours['params_removed']:.2f}",
            f"trial: {row['trial']}" if row["trial"] else "",
        )
    return made


def plan_of(recipes: Sequence[Recipe], dataset: Dataset, work: Path, options: argparse.Namespace) -> list[Row]:
    """Time every network, and return what each row will take."""
    speeds: dict[str, float] = {}
    rows = []
    trained = {path.parent.parent.name for path in work.glob(f"*/baseline/{runs.WEIGHTS_NAME}")}
    have = {recipe.model for recipe in recipes if recipe.name in trained}
    images = min(len(dataset.train), options.limit or len(dataset.train))
    for recipe in recipes:
        if recipe.model not in speeds:
            changed = TrainConfig(**{**recipe.baseline.model_dump(), "device": options.device})
            speeds[recipe.model] = seconds_per_image(recipe.model, dataset, changed, images)
        shorter = recipe.changed(epochs_scale=options.epochs_scale)
        rows.append(Row(shorter, speeds[recipe.model], images, recipe.model not in have))
        have.add(recipe.model)
    return rows


def main() -> None:
    """Train what fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="archive or folder with train/ and test/")
    parser.add_argument("--keep", type=Path, required=True, help="folder for what must last")
    parser.add_argument("--minutes", type=float, required=True, help="for everything, unpacking included")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu_rows"), help="scratch; emptied first")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=studies.names(), metavar="RECIPE")
    parser.add_argument("--epochs-scale", type=float, default=1.0)
    parser.add_argument("--limit", type=int, help="training and test images")
    parser.add_argument("--device")
    options = parser.parse_args()
    console = Console()
    deadline = time.monotonic() + 60 * options.minutes - SPARE
    shutil.rmtree(options.work, ignore_errors=True)
    work = options.work / "rows"
    work.mkdir(parents=True)
    if options.keep.exists():
        unpack(options.keep, work)
    dataset = images_of(options.images, options.work / "images")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    record = work / "rows.json"
    found = json.loads(record.read_text()) if record.exists() else {"benchmark": "gpu_rows", "calls": [], "rows": {}}
    found["calls"].append(
        {
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": where,
            "versions": {name: version(name) for name in ("torch", "torchvision", "clusterprune")},
        }
    )
    todo = [studies.read(name) for name in options.rows if name not in found["rows"]]
    try:
        with ends_at(deadline):
            forecast(console, plan_of(todo, dataset, work, options), deadline)
            for recipe in todo:
                began = time.monotonic()
                result = run(recipe, dataset, work, options, console)
                found["rows"][recipe.name] = entry(result, time.monotonic() - began)
                record.write_text(json.dumps(found, indent=1) + "\n")
                pack(work, options.keep)
    except KeyboardInterrupt:
        console.print("the time is over; the same command goes on from what is kept")
    record.write_text(json.dumps(found, indent=1) + "\n")
    pack(work, options.keep)
    console.print(table(found["rows"]))


def forecast(console: Console, rows: Sequence[Row], deadline: float) -> None:
    """Say what will fit."""
    left = (deadline - time.monotonic()) / 60
    for row in rows:
        left -= row.minutes
        fits = "fits" if left >= 0 else "does not fit: begun, and left to go on with"
        console.print(f"{row.recipe.name}: {row.epochs:g} epochs, some {row.minutes:.1f} minutes; {fits}")


def run(recipe: Recipe, dataset: Dataset, work: Path, options: argparse.Namespace, console: Console) -> Reproduction:
    """Reproduce a row, or go on with it, from the original of its network if there is one."""
    asked = work / recipe.name / "asked.json"
    others = sorted(work.glob(f"*-{recipe.model}-{recipe.data}-*/baseline/{runs.WEIGHTS_NAME}"))
    if asked.exists():  # it goes on from the original that it was begun with
        digest = json.loads(asked.read_text())["weights"]
        others = [path for path in others if sha256_of(path) == digest]
    weights = next(iter(others), None)

    def watch(phase: str, event: Progress) -> None:
        if event.kind == "epoch" and event.record is not None:
            console.print(
                f"{recipe.name}, {phase}: epoch {event.epoch}/{event.epochs}, {event.record}", highlight=False
            )

    return studies.reproduce(
        recipe, dataset, out=work / recipe.name, weights=weights, epochs_scale=options.epochs_scale,
        limit=options.limit, device=options.device, watch=watch,
    )  # fmt: skip


if __name__ == "__main__":
    main()
