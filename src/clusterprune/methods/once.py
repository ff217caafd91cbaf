"""Methods that cut once: in one shot, or by a criterion; then train for a while, or not at all.

images ← some of those that there are, or such as the batch norms remember
plan   ← the cut's choice on them
plan   ← what the compact network learns of the original's outputs on them      (if asked to)
train the compact network                                                      (if asked to)
"""

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from clusterprune.budget.limits import AUTO, RoundTo
from clusterprune.criteria import CriterionName, Targets
from clusterprune.errors import ArgumentError
from clusterprune.files.writing import output_errors
from clusterprune.graph import ChannelGraph
from clusterprune.merge.bn_images import can_make_images, images_from_norms
from clusterprune.methods._base import Method
from clusterprune.methods._settings import BUDGET, option
from clusterprune.methods._work import PLAN_NAME, Network, Outcome, Work, score, trained_record
from clusterprune.methods.cuts import CriterionCut, Cut, Keep, OneShotCut
from clusterprune.methods.distil import distil
from clusterprune.methods.foresight import Foresight
from clusterprune.methods.latency import read_clock
from clusterprune.plan import Plan
from clusterprune.surgery.apply import apply
from clusterprune.tables import few
from clusterprune.tasks import Task
from clusterprune.train import here

SCORE_NAME = "method.json"
CUT_NAME = "plan-cut"
"""Of the plan before it was distilled."""
DISTILLED_NAME = "distil.safetensors"
"""What was learnt so far, while it is."""
IMAGES_NAME = "images.png"


@dataclass(frozen=True)
class CutOnce(Method):
    """Cut once, then train for a while or not at all.

    Attributes
    ----------
    keep_macs
        Share of the multiply-adds to keep, such as 0.5.
    keep_params
        Share of the parameters to keep.
    keep_latency
        Share of the time for an image on this machine to keep.
    max_macs
        The most multiply-adds of an image, such as 2e9.
    max_params
        The most parameters.
    max_latency_ms
        The most milliseconds for an image on this machine.
    cut
        What the cut goes by.
    images
        How many images to look at, without their labels unless a criterion differentiates the loss.
    data_free
        Use no images but such as the model's batch norms remember.
    save_images
        With data_free: write the images that were made to images.png in the run's folder.
    round_to
        Keep multiples of so many channels; "auto": of 8, 4, 2 or 1, by how wide a group is, which run fast.
    min_width
        Keep at least so many channels of a group.
    latency
        What a target in time is measured by, such as onnxruntime:threads=1:batch=8; --runtime sets it.
    ignore
        Layers or groups of these names, or globs, are left alone.
    distil
        After the cut, learn from the original without labels, for seconds (120) or steps (400steps).
    """

    name: ClassVar[str] = "oneshot"
    in_images: ClassVar[tuple[str, ...]] = ("images",)
    parts: ClassVar[dict[str, dict[str, type[Any]]]] = {"cut": {"oneshot": OneShotCut}}
    readers: ClassVar[dict[str, Any]] = {"latency": read_clock}
    renamed: ClassVar[dict[str, str]] = {"merge": "it is called merging"}

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)
    keep_params: float | None = option(None, "SHARE", panel=BUDGET)
    keep_latency: float | None = option(None, "SHARE", panel=BUDGET)
    max_macs: float | None = option(None, "N", panel=BUDGET)
    max_params: float | None = option(None, "N", panel=BUDGET)
    max_latency_ms: float | None = option(None, "MS", panel=BUDGET)
    cut: Cut = OneShotCut()  # noqa: RUF009 (frozen)
    images: int = option(1024, "N", panel="Data")
    data_free: bool = option(False, "", "--data-free", "--no-data", panel="Data")
    save_images: bool = option(False, panel="Data")
    round_to: RoundTo = option(AUTO, "N|auto")  # noqa: RUF009 (a field)
    min_width: int = option(1, "N")
    latency: Any = None
    ignore: tuple[str, ...] = option((), "GLOB")
    distil: str | None = option(None, "SECONDS|STEPS")

    def __post_init__(self) -> None:
        """Check the target, and what does not go together; the rest is checked by whoever cuts."""
        self.cut.check(self.keep)
        read_clock(self.latency)
        duration_of(self.distil)
        if self.images < 2:
            raise ArgumentError(f"images must be at least 2, but got images={self.images!r}")
        if self.save_images and not self.data_free:
            raise ArgumentError("save_images shows the images that data_free makes; give both, or leave it out")

    @property
    def keep(self) -> Keep:
        """What the cut shall leave."""
        return Keep(
            self.keep_macs, self.keep_params, self.keep_latency, self.max_macs, self.max_params, self.max_latency_ms,
            self.round_to, self.min_width, self.latency,
        )  # fmt: skip

    @property
    def looks(self) -> bool:
        """Whether it looks at images, and not at such as it makes."""
        return not self.data_free

    def foresee(self, network: Network, work: Work, memory_limit: float | None = None) -> Foresight | None:
        """Check that the target can be met, and say what the cut takes; not what a training does."""
        graph = work.remembered("graph", network.graph).freeze(self.ignore)
        images = self.images if work.images is None else min(self.images, len(work.images))
        return self.cut.foresee(graph, self.keep, images, memory_limit)

    def compress(self, network: Network, task: Task | None, work: Work) -> Outcome:
        """Cut once; then distil and train, if asked to."""
        graph = work.remembered("graph", network.graph)
        drawn = functools.cache(lambda: self._images(network, graph, task, work))

        def choose() -> Plan:
            common: dict[str, Any] = {"task": task, "seed": work.seed, "progress": work.report}

            def planner() -> Callable[[Keep], Plan]:
                pixels, targets = drawn()
                return self.cut.planner(graph.freeze(self.ignore), pixels, targets=targets, **common)

            if work.memory is not None:
                made = work.remembered("planner", planner)(self.keep)
            else:
                pixels, targets = drawn()
                made = self.cut.plan(graph.freeze(self.ignore), pixels, self.keep, targets=targets, **common)
            _tell_few_rows(made, work)
            if "widths" in made.notes:
                work.tell(f"Kept widths are {made.notes['widths']}; --round-to 1 leaves them free.")
            return made

        plan = work.plan(choose, PLAN_NAME if self.distil is None else CUT_NAME)
        if self.distil is not None:
            cut_alone, wanted = plan, duration_of(self.distil)
            plan = work.plan(
                lambda: distil(
                    graph, cut_alone, _needed(drawn()[0], "distil"), **wanted, seed=work.seed, divergence=task,
                    out=work.place / DISTILLED_NAME, progress=work.report,
                )
            )  # fmt: skip
            here().once(lambda: (work.place / DISTILLED_NAME).unlink(missing_ok=True))
        work.record_cut(graph.freeze(self.ignore), plan, lambda: drawn()[0])
        cut = apply(network.model, plan, graph=graph).eval()
        record: dict[str, Any] = {"images": 0 if self.data_free else plan.notes.get("images", 0)}
        record |= {"distil": plan.notes["distil"]} if "distil" in plan.notes else {}
        if task is None or work.training is None:
            return Outcome(cut, cut, plan, record)
        record |= work.once(SCORE_NAME, lambda: {"accuracy_cut": score(task, cut)})
        small = copy.deepcopy(cut)
        return Outcome(small.eval(), cut, plan, record | trained_record(work.fit(small, task, "train")))

    def _images(
        self, network: Network, graph: ChannelGraph, task: Task | None, work: Work
    ) -> tuple[Tensor | None, Targets | None]:
        """Draw images: normalised, on the device, with their targets; or make some, or do without."""
        if self.data_free:
            made = images_from_norms(graph, seed=work.seed, progress=work.report) if can_make_images(graph) else None
            if self.save_images:
                _write_images(work.place / IMAGES_NAME, _needed(made, "save_images"))
            return made, None
        if task is None:
            raise ArgumentError("there are no images to learn from; give a task, or data_free=True")
        split = task.train if work.images is None else work.images
        if len(split) < self.images:
            work.tell(f"There are {len(split)} images to look at, fewer than the {self.images} asked for.")
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(work.seed))
        part = split.subset(order[: min(self.images, len(order))])
        pixels, _ = part.load()
        try:
            targets = task.targets(part)
        except ArgumentError:  # without labels, which only a criterion that differentiates the loss would miss
            targets = None
        return task.normalize(pixels).to(network.example.device), targets


def by_criterion(criterion: CriterionName) -> type[CutOnce]:
    """Return the method that cuts once by a criterion, of its name."""
    doc = f"Cut once by the criterion {criterion}, then train for a while or not at all."
    about = {"__doc__": doc, "name": criterion, "parts": {"cut": {criterion: CriterionCut}}, "__module__": __name__}
    default = ("cut", Cut, CriterionCut(criterion))
    return make_dataclass(f"CutBy_{criterion}", [default], bases=(CutOnce,), namespace=about, frozen=True)


def _needed(images: Tensor | None, name: str) -> Tensor:
    """Return the images, where there are any."""
    if images is None:
        raise ArgumentError(
            f"{name} needs images, but this model has no batch norms to make them from; give images, or leave {name} "
            "out"
        )
    return images


def _tell_few_rows(plan: Plan, work: Work) -> None:
    """Say which groups had too few images to be judged by."""
    wanted = dict(plan.notes.get("few_rows", {}))
    if wanted:
        work.tell(
            f"These images show fewer rows than there are channels of {few(sorted(wanted))}, cut with care for that; "
            f"images={max(wanted.values())} would tell more."
        )


def duration_of(text: str | None) -> dict[str, Any]:
    """Return for how long to distil, by the name of the argument of :func:`clusterprune.distil`.

    Raises
    ------
    ArgumentError
        If the text is neither a number of seconds nor of steps.
    """
    if text is None:
        return {}
    found = re.fullmatch(r"\s*(\d{1,7}(?:\.\d+)?)\s*(s|sec|seconds|steps)?\s*", text)
    value = float(found[1]) if found else 0.0
    steps = found is not None and found[2] == "steps"
    if not value or (steps and not value.is_integer()):
        raise ArgumentError(f"distil takes seconds, such as 120, or steps, such as 400steps, but got distil={text!r}")
    return {"steps": int(value)} if steps else {"seconds": value}


def _write_images(path: Path, images: Tensor) -> None:
    """Write some of the images as one picture, each stretched to its own range: how bright they were is not known."""
    shown = images[:64].float().cpu()
    low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
    pixels = ((shown - low) / (high - low).clamp_min(1e-12) * 255).round().byte()
    pixels = functional.pad(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3], (0, 2, 0, 2))
    lines: tuple[Tensor, ...] = torch.split(pixels, 8)
    rows = [torch.cat([*line], dim=2) for line in lines]
    widest = max(row.shape[2] for row in rows)
    sheet = functional.pad(
        torch.cat([functional.pad(row, (0, widest - row.shape[2])) for row in rows], 1), (2, 0, 2, 0)
    )
    with output_errors(path):
        Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(path)
