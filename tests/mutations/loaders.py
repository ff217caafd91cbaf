"""Every loader of the package, with sound files to start from, and what is to be said of a file that loads."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, runs
from clusterprune.cli.closing import comparison, single
from clusterprune.files.reading import seal, sha256_of
from clusterprune.files.writing import begun_with, read_record, write_json
from clusterprune.models import load_weights
from clusterprune.plan import digest_of
from clusterprune.studies import recipe
from clusterprune.studies.comparison import Contender, Entry
from clusterprune.surgery import history
from clusterprune.train import checkpoint


@dataclass(frozen=True)
class Loader:
    """A loader under attack.

    Attributes
    ----------
    write
        Writes sound files into an empty folder.
    read
        Reads them; returns what identifies the content.
    files
        Those that are changed, relative to the folder.
    sealed
        Whether whatever loads must be what was written, because digests protect it.
    mend
        Makes the digests true again after a change, so that it gets further than they.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    sealed: bool = False
    mend: Callable[[Path], Any] | None = None


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()


class Halves(nn.Module):
    """Sizes written into its code: a cut of it is a graph module, which is rebuilt by tracing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = nn.Conv2d(3, 7, 3), nn.Conv2d(3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).split([3, 4], 1)
        return self.left(left) + self.right(right)


IMAGE = torch.zeros(1, 3, 8, 8)


def _plan(model: nn.Module, group: str, kept: list[int]) -> tuple[cp.ChannelGraph, cp.Plan]:
    graph = cp.trace(model, IMAGE)
    found = graph.by_name[group]
    consumer = found.consumers[0].path
    mixing = torch.eye(found.width)[:, kept]
    merge = cp.Merge(group, kept, {consumer: mixing}, {consumer: torch.ones(found.width)})
    return graph, cp.Plan.of(graph, (merge,), method="by hand", keep_macs=0.5)


def _identity(plan: cp.Plan) -> str:
    merges = [(m.group, m.kept.tolist(), sorted((k, t.tolist()) for k, t in m.mixing.items())) for m in plan.merges]
    offsets = [sorted((k, t.tolist()) for k, t in m.offset.items()) for m in plan.merges]
    rest = (plan.replaced, plan.model, plan.weights, plan.example, plan.notes)
    return repr((merges, offsets, *map(repr, rest)))


def _write_plan(folder: Path) -> None:
    _plan(network(), "0", [0, 2, 5])[1].save(folder / "it")


_traced: dict[str, cp.ChannelGraph] = {}


def _read_plan(folder: Path) -> str:
    """Read a plan, and put it to use."""
    plan = cp.Plan.load(folder / "it")
    graph = _traced.setdefault("graph", cp.trace(network(), IMAGE))
    cp.apply(graph.model, plan, graph=graph)
    return _identity(plan)


def _write_compact(factory: Callable[[], nn.Module], group: str, kept: list[int]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model = factory()
        graph, plan = _plan(model, group, kept)
        cp.save(cp.apply(model, plan, graph=graph), folder / "it")

    return write


def _read_compact(factory: Callable[[], nn.Module]) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        model = cp.load(folder / "it", factory)
        return digest_of(model) + repr(history.describe(model))

    return read


def _mend(document: str, tensors: str) -> Callable[[Path], None]:
    """Return what makes the digests of two files true, as far as the document can be understood."""

    def mend(folder: Path) -> None:
        path = folder / "it" / document
        try:
            content = json.loads(path.read_bytes())
        except ValueError:
            return
        if isinstance(content, dict):
            content.pop("sha256", None)
            content["tensors_sha256"] = sha256_of(folder / "it" / tensors)
            path.write_text(json.dumps(seal(content)))

    return mend


def _read_weights(name: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        model = network()
        load_weights(model, folder / name)
        return digest_of(model)

    return read


def _write_torch(name: str, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch.save({"epoch": 3, "state_dict": network().state_dict(), "note": ("a", 1.5)}, folder / name, **options)

    return write


def _write_run(folder: Path) -> None:
    options = {"model": "resnet20", "keep_macs": 0.5, "images": 256, "seeds": [0, 1], "out": folder, "data": "digits"}
    runs.write_config(folder, "compress", options)
    measured = runs.Measurement(10, 20, {"accuracy": 91.5, "accuracy_top5": None}, 100, 1.5, 0.1, 8).to_dict()
    runs.write_result(folder, {"trained": measured, "baseline": measured, "compressed": measured, "seed": 0})
    runs.write_log(folder, [{"phase": "measure", "seconds": 1.0}, {"epoch": 1, "loss": 0.3, "note": "é"}])
    write_json(folder / "entry.json", asdict(Entry("icp", 0, 10, 20, None, 91.5, 3.0)))
    write_json(folder / "asked.json", {"eps": 0.02, "training": {"epochs": 3}})
    (folder / "method.txt").write_text("icp:steps=2:merge=drop:alpha=0.5")


def _read_run(folder: Path) -> str:
    """Read everything that a run writes for itself; each reader has to take what was left to it."""
    config, log = runs.read_config(folder / "config.yaml"), runs.read_log(folder)
    if (result := runs.read_result(folder, "trained", "baseline", "compressed")) is not None:
        comparison("tables are drawn of it", result["baseline"], result["compressed"])
        single("and of one network", result["trained"])
    entry, asked = read_record(folder / "entry.json", Entry), begun_with(folder / "asked.json", {"eps": 0.02})
    text = (folder / "method.txt").read_text(errors="replace")
    return repr((config, result, log, entry, asked, Contender.read(text)))


def _write_recipe(folder: Path) -> None:
    source = Path(recipe._folder()) / f"{recipe.names()[0]}.yaml"
    (folder / "mine.yaml").write_bytes(source.read_bytes())


def _write_checkpoint(folder: Path) -> None:
    tensors = {"model.a": torch.arange(6.0).view(2, 3), "optimizer.b": torch.ones(2, dtype=torch.int64)}
    header = checkpoint.Header(
        epoch=1, step=2, history=[{"epoch": 1, "loss": 0.5}], tally=checkpoint.Tally(images=3), config={"epochs": 2},
        data={"mean": [0.5]}, environment={"device": "cpu"},
    )  # fmt: skip
    checkpoint.write(folder / "checkpoint.safetensors", tensors, header)


def _read_checkpoint(folder: Path) -> str:
    tensors, header = checkpoint.read(folder / "checkpoint.safetensors")
    return repr(sorted((name, tensor.tolist()) for name, tensor in tensors.items())) + header.model_dump_json()


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _write_cifar(folder: Path) -> None:
    for form, names, labels in (
        ("cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"], 1),
        ("cifar-100-binary", ["train.bin", "test.bin"], 2),
    ):
        (folder / form).mkdir()
        for name in names:
            records = _noise(2, labels + 3072)
            records[:, :labels] %= 10
            (folder / form / name).write_bytes(records.tobytes())
    (folder / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join("abcdefghij"))


def _read_cifar(folder: Path) -> str:
    found = [data.load(f"{name}:{folder}") for name in ("cifar10", "cifar100")]
    return repr([[split.load() for split in dataset.splits.values()] for dataset in found])


FORMATS = ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm")


def _write_images(folder: Path) -> None:
    place = folder / "train" / "cat"
    place.mkdir(parents=True)
    for name in FORMATS:
        Image.fromarray(_noise(9, 9, 3)).save(place / f"it.{name}")
        Image.fromarray(_noise(9, 9, 3)).save(place / f"sound.{name}")


def _read_images(folder: Path) -> str:
    return repr(data.load(f"folder:{folder}", image_size=8).train.load())


_PLAN = ("it/plan.json", "it/plan.safetensors")
_COMPACT = ("it/structure.json", "it/model.safetensors")
_mend_plan, _mend_compact = _mend("plan.json", "plan.safetensors"), _mend("structure.json", "model.safetensors")

_CIFAR = (
    "cifar-10-batches-bin/data_batch_1.bin",
    "cifar-10-batches-bin/batches.meta.txt",
    "cifar-100-binary/train.bin",
)

LOADERS: dict[str, Loader] = {
    "plan": Loader(_write_plan, _read_plan, _PLAN, sealed=True),
    "plan, digests mended": Loader(_write_plan, _read_plan, _PLAN, mend=_mend_plan),
    "compact model": Loader(_write_compact(network, "0", [0, 2, 4, 5]), _read_compact(network), _COMPACT, sealed=True),
    "compact model, digests mended": Loader(
        _write_compact(network, "0", [0, 2, 4, 5]), _read_compact(network), _COMPACT, mend=_mend_compact
    ),
    "compact graph module, digests mended": Loader(
        _write_compact(Halves, "stem", [0, 2]), _read_compact(Halves), _COMPACT, mend=_mend_compact
    ),
    "weights in safetensors": Loader(
        lambda folder: runs.write_weights(folder, network()), _read_weights(runs.WEIGHTS_NAME), (runs.WEIGHTS_NAME,)
    ),
    "weights of torch.save": Loader(_write_torch("w.pt"), _read_weights("w.pt"), ("w.pt",)),
    "weights of old torch.save": Loader(
        _write_torch("w.pth", _use_new_zipfile_serialization=False), _read_weights("w.pth"), ("w.pth",)
    ),
    "files of a run": Loader(
        _write_run, _read_run, ("config.yaml", "result.json", "log.jsonl", "entry.json", "asked.json", "method.txt")
    ),
    "recipe": Loader(_write_recipe, lambda folder: repr(recipe.read(folder / "mine.yaml")), ("mine.yaml",)),
    "training checkpoint": Loader(_write_checkpoint, _read_checkpoint, ("checkpoint.safetensors",), sealed=True),
    "cifar": Loader(
        _write_cifar,
        _read_cifar,
        _CIFAR,
    ),
    "image folder": Loader(_write_images, _read_images, tuple(f"train/cat/it.{name}" for name in FORMATS)),
}


def digest(text: Any) -> str:
    """Return a short name of what was read."""
    return hashlib.sha256(repr(text).encode(errors="replace")).hexdigest()[:16]
