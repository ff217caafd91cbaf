"""A detector cut in one shot, and cut and trained by every method: SSD on PASCAL VOC-format data.

Claims under test: without training, one-shot keeps all but 1.5 points of mAP50 at 75 % of the MACs and all but 5 at
50 %, and is never below the same share of every layer; with the same short training for every method, the best of ours
ends within a point of the original at 50 %.

    python benchmarks/detection.py --data voc:BCCD --weights vgg16-jpeg.safetensors --images folder:CIFAR --out RUNS

The network is as the papers deploy what they prune: SSD on a VGG-16 that was trained on CIFAR-10 and cut to 8 % of its
MACs, in a quarter of SSD's width, for images of 160 pixels. Its smallest default boxes are 7 % of the image, as large
as BCCD's platelets. It is trained on the data's training images (BCCD: trainval, 292) and read once on its test images
(BCCD: test, 72), mAP50 over all points. Nothing is chosen on the test images.

RUNS keeps backbone/, the training, and a folder for each contender: the same command goes on where it was stopped, and
results/detection.json has every figure as soon as it is there. ``--parts`` picks: train, oneshot, methods, agreement;
the last compares the average precisions of the original with those of COCO's own code, on 500 test images at most
(``pip install pycocotools``).
"""

import argparse
import functools
import json
import platform
import shlex
import statistics
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, evaluate, models, runs, train
from clusterprune.methods import Network
from clusterprune.models.spec import CIFAR_MEAN, CIFAR_STD
from clusterprune.models.ssd import SSD
from clusterprune.studies.comparison import TRAINING, Contender, Entry, compare
from clusterprune.tasks import Detection, MultiBox
from clusterprune.tasks.average_precision import COLUMNS
from clusterprune.train import TrainConfig

RESULTS = Path(__file__).parent / "results" / "detection.json"
SIZE, WIDTH = 160, 0.25
SCALES = (0.07, 0.16, 0.3, 0.5, 0.7, 0.9)
BACKBONE_MACS = 0.08
IMAGES = 256
SLICE = 500
ONESHOT = ("ours", "same share", "l1", "by kind of output")
"""Without training: ours; ours with the same share of every layer; ours that takes locations and scores for numbers
with noise; and a criterion, with nothing handed over."""
CONTENDERS = "oneshot:round_to=1,icp,acp:particles=3:cycles=2,cp,l1:round_to=1,taylor:round_to=1"


def backbone(folder: Path, weights: str, images: str) -> nn.Sequential:
    """Return the features of VGG-16, cut to a share of its MACs; kept in a folder."""
    if not folder.exists():
        spec = models.resolve("vgg16")
        whole = models.build(spec, weights=weights).float()
        pixels = data.sample(data.load(images, image_size=32).train, IMAGES, 0).images()
        graph = cp.trace(whole, spec.example())
        config = cp.OneShot(compare=False, macs_to_spend=1e11)
        plan = cp.oneshot(
            graph, data.normalize(pixels, spec.mean, spec.std), keep_macs=BACKBONE_MACS, round_to=1, config=config
        )
        cp.save(cp.apply(whole, plan, graph=graph), folder)
    return cp.load(folder, lambda: models.build("vgg16")).features  # type: ignore[return-value]


class Keeping(Detection):
    """A detection that keeps what it has seen."""

    rows: Tensor

    def summarise(self, rows: Tensor) -> dict[str, float | None]:
        """Keep the objects and detections."""
        self.rows = rows.reshape(-1, len(COLUMNS))
        return super().summarise(rows)


def coco_figures(rows: Tensor) -> tuple[float, float]:
    """Return mAP and mAP50 in percent by pycocotools, which a difficult object is a crowd to."""
    from pycocotools.coco import COCO  # pyright: ignore  # nothing else here needs it
    from pycocotools.cocoeval import COCOeval  # pyright: ignore

    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (image, label, score, difficult, left, top, right, bottom) in enumerate(rows.double().tolist()):
        box = [left, top, right - left, bottom - top]
        about = {"id": number + 1, "image_id": int(image), "category_id": int(label), "bbox": box}
        about |= {"area": box[2] * box[3], "iscrowd": int(difficult)}
        if score < 0:
            objects.append(about)
        else:
            found.append(about | {"score": score})
    truth, guess = COCO(), COCO()
    images = [{"id": int(image)} for image in rows[:, 0].unique()]
    classes = [{"id": int(label)} for label in rows[:, 1].unique()]
    for made, annotations in ((truth, objects), (guess, found)):
        made.dataset = {"images": images, "categories": classes, "annotations": annotations}
        made.createIndex()
    judge = COCOeval(truth, guess, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return 100 * float(judge.stats[0]), 100 * float(judge.stats[1])


class Bench:
    """The network, its data, and the figures so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.data = data.load(options.data, image_size=SIZE)
        features = backbone(options.out / "backbone", options.weights, options.images)
        self.build = functools.partial(
            SSD, len(self.data.classes) + 1, width=WIDTH, size=SIZE, batch_norm=True, scales=SCALES, features=features
        )
        torch.manual_seed(0)
        self.model = self.build()
        head = MultiBox(self.model.default_boxes)
        self.task = Detection(self.data.train, mean=CIFAR_MEAN, std=CIFAR_STD, head=head)
        self.example = torch.zeros(1, 3, SIZE, SIZE)
        every = json.loads(options.results.read_text()) if options.results.exists() else {}
        self.every, self.found = every, every.setdefault(data_name(options.data), {})

    def note(self, name: str, value: dict[str, Any]) -> None:
        """Keep a figure, and write all."""
        self.found[name] = value
        self.found["command"] = shlex.join(["python", "benchmarks/detection.py", *sys.argv[1:]])
        versions = {name: version(name) for name in ("clusterprune", "torch")}
        self.found["versions"] = versions | {"python": platform.python_version()}
        self.found["device"] = runs.environment(torch.device("cpu"))["device"]
        self.options.results.write_text(json.dumps(self.every, indent=1) + "\n")
        print(f"{name}: {value}", flush=True)

    def worth(self, model: nn.Module) -> dict[str, Any]:
        """Return what a network costs, and its average precisions on the test images."""
        found = evaluate.metrics(model.eval(), self.task, self.data.test, batch_size=16).values
        return {"macs": evaluate.macs(model, self.example), "params": evaluate.params(model), **found}

    def original(self) -> None:
        """Train the network, or take it as it was trained, and measure it."""
        options = self.options
        config = TrainConfig(
            epochs=options.epochs, batch_size=8, lr=options.lr, warmup_epochs=1, clip_norm=20, device="cpu",
            precision=options.precision,
        )  # fmt: skip
        again = config.changed(epochs=options.again, warmup_epochs=0)
        for round_, training in (("ssd", config), ("ssd-again", again)):
            result = train.fit(self.model, self.task, training, out=options.out / round_, resume=True, progress=said)
        self.model.eval()
        if "original" not in self.found:
            about = {
                "epochs": [options.epochs, options.again],
                "train_images": len(self.data.train),
                "test_images": len(self.data.test),
            }
            self.note("original", {**self.worth(self.model), **about, "loss": result.history[-1]["loss"]})

    def agreement(self) -> None:
        """Compare average precisions with those that COCO's own code finds in the same boxes."""
        part = data.sample(self.data.test, min(SLICE, len(self.data.test)), 0)
        task = Keeping(self.data.train, mean=CIFAR_MEAN, std=CIFAR_STD, head=MultiBox(self.model.default_boxes))
        ours = evaluate.metrics(self.model, task, part, batch_size=16).values
        fine, coarse = coco_figures(task.rows)
        figures = {"map": ours["map"], "pycocotools map": fine, "map50": ours["map50"], "pycocotools map50": coarse}
        self.note("agreement", {"images": len(part), **figures})

    def without_training(self) -> None:
        """Cut in one shot, to each share, in each way."""
        part = data.sample(self.data.train, min(IMAGES, len(self.data.train)), 0)
        images = self.task.normalize(part.images())
        graph = cp.trace(self.model, self.example)
        for way in ONESHOT:
            left = [keep for keep in self.options.oneshot_keep if f"oneshot/{way}/{keep}" not in self.found]
            if not left:
                continue
            began = time.process_time()
            if way == "l1":
                planner = functools.partial(cp.prune_by, graph, "l1", round_to=1)
            else:
                config = cp.OneShot(sensitivity="uniform") if way == "same share" else cp.OneShot()
                task = None if way == "by kind of output" else self.task
                planner = functools.partial(cp.measure(graph, images, config=config, divergence=task).plan, round_to=1)
            for keep in left:
                worth = self.worth(cp.apply(self.model, planner(keep_macs=keep), graph=graph))
                self.note(f"oneshot/{way}/{keep}", {**worth, "cpu_seconds": round(time.process_time() - began)})

    def with_training(self) -> None:
        """Let the methods compete, with the same training; and train the original as long."""
        options = self.options
        training = TRAINING.changed(
            epochs=options.short_epochs, batch_size=8, lr=options.short_lr, clip_norm=20, device="cpu",
            precision=options.precision,
        )  # fmt: skip
        about = {"epochs": options.short_epochs, "lr": options.short_lr}
        name = f"original/{options.short_epochs} more epochs"
        if name not in self.found:
            again = self.build()
            again.load_state_dict(self.model.state_dict())
            train.fit(again, self.task, training, out=options.out / "again", resume=True, progress=said)
            self.note(name, {**self.worth(again), **about})
        own, held_out = data.holdout(self.data.train, 0.1)
        task = self.task.on(own, held_out)
        network = Network(self.model, self.example, self.build)

        def done(keep: float, entry: Entry) -> None:
            self.note(f"trained/{entry.contender}/{keep}/seed-{entry.seed}", {**asdict(entry), **about})

        for keep in options.keep:
            for contender in options.contenders.split(","):
                compare(
                    network, task, self.data.test, [Contender.read(contender)], keep_macs=keep, training=training,
                    seeds=options.seeds, out=options.out / f"keep-{keep:g}", done=functools.partial(done, keep),
                )  # fmt: skip

    def tables(self) -> list[Table]:
        """Lay the figures out."""
        whole = self.found["original"]
        first = Table("without training", "MACs", "mAP50", "points lost", title=f"original: {whole['map50']:.2f}")
        second = Table(
            "method", "MACs", "after the cut", "after training", "points lost", title="with the same training"
        )
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for name, one in self.found.items():
            kind, _, rest = name.partition("/")
            share = f"{100 * one['macs'] / whole['macs']:.1f} %" if isinstance(one, dict) and "macs" in one else ""
            if kind == "oneshot" or (kind == "original" and rest):
                row = (rest, share, f"{one['map50']:.2f}", f"{whole['map50'] - one['map50']:.2f}")
                first.add_row(*row)
            elif kind == "trained":
                groups.setdefault((rest.rpartition("/")[0], share), []).append(one)
        for (name, share), entries in groups.items():
            final = statistics.mean(one["accuracy"] for one in entries)
            cuts = [one["accuracy_cut"] for one in entries if one["accuracy_cut"] is not None]
            cut = f"{statistics.mean(cuts):.2f}" if cuts else "-"
            second.add_row(name, share, cut, f"{final:.2f}", f"{whole['map50'] - final:.2f}")
        return [first, second]


def data_name(text: str) -> str:
    """Return the name of a data set's folder."""
    return Path(text.partition(":")[2]).name


def said(event: train.Progress) -> None:
    """Print the loss of every epoch."""
    if event.kind == "epoch":
        print(f"epoch {event.epoch}: loss {event.loss:.3f}", flush=True)


def main() -> None:
    """Do what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="voc:DIR or coco:DIR")
    parser.add_argument("--weights", required=True, help="vgg16-jpeg.safetensors")
    parser.add_argument("--images", required=True, help="folder:CIFAR, that the backbone is cut on")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--again", type=int, default=10, help="epochs of a second training, from the same rate")
    parser.add_argument("--lr", type=float, default=0.01, help="of both trainings")
    parser.add_argument("--parts", nargs="+", default=["train", "oneshot", "methods"])
    parser.add_argument("--oneshot-keep", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.35])
    parser.add_argument("--contenders", default=CONTENDERS)
    parser.add_argument("--short-epochs", type=int, default=3)
    parser.add_argument("--short-lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of every training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    bench.original()
    if "oneshot" in options.parts:
        bench.without_training()
    if "methods" in options.parts:
        bench.with_training()
    if "agreement" in options.parts:
        bench.agreement()
    console = Console()
    for table in bench.tables():
        console.print(table)


if __name__ == "__main__":
    main()
