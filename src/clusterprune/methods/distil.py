# pyright: reportUnknownMemberType=false
r"""Distillation without labels: what a cut network still lacks, learnt from the original on the calibration images.

A refit solves one layer at a time. What is left after it are errors that several layers make together, and these only
gradient descent through the whole network finds. The compact network learns the original's outputs and, where blocks
end, its features:

.. math:: L = D(\text{outputs}) + w \cdot \Bigl\langle\frac{\lVert f_k - f'_k\rVert^2}
          {\lVert f_k - \bar f_k\rVert^2}\Bigr\rangle_k

where D is the divergence of the task or :class:`clusterprune.merge.divergence.ByKind`, f and f' are the features of the
original (its kept channels) and of the compact network at the end k of a block, and f̄ is the original's mean per
channel. Images are mirrored and moved by a few pixels, for few of them would soon be known by heart. Batch norms keep
their statistics.
"""

import hashlib
import math
import time
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from clusterprune.arguments import check_instance, check_number, check_progress, check_seed
from clusterprune.errors import ArgumentError
from clusterprune.files.tensors import read_tensors, tensor_bytes
from clusterprune.files.writing import write_file
from clusterprune.graph import ChannelGraph
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.images import Images, Progress, gradient_batch_size, inputs_of, whole_batches
from clusterprune.graph.ops.pointwise import is_addition
from clusterprune.graph.program import Program, named_tensors
from clusterprune.graph.rewrite import ChannelMask, rewrite
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.plan import Plan
from clusterprune.surgery.bias_homes import with_new_biases
from clusterprune.surgery.cutting import removed_labels
from clusterprune.surgery.masking import compact_state

aten = torch.ops.aten


@dataclass(frozen=True)
class Distil:
    """How to distil; the defaults are safe for any network that was refitted before.

    Attributes
    ----------
    rate
        Of Adam, at most; it rises over the first twentieth and falls to nothing by a cosine.
    features
        Weight w of the features.
    batch
        Images of a step, at most.
    held_out
        Share of the images on which the result is compared with what it began with.
    clip
        Largest norm of the gradient.
    save_every
        Seconds between two files to resume from.
    """

    rate: float = 2e-4
    features: float = 1.0
    batch: int = 64
    held_out: float = 0.125
    clip: float = 1.0
    save_every: float = 20.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("rate", "clip", "batch"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive, but got {name}={getattr(self, name)!r}")
        if not 0 <= self.held_out < 1:
            raise ArgumentError(f"held_out must be a share below 1, but got held_out={self.held_out!r}")


def distil(
    graph: ChannelGraph,
    plan: Plan,
    images: Images,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    config: Distil | None = None,
    divergence: Divergence | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan with every parameter of the compact network learnt anew from the original's outputs.

    Parameters
    ----------
    graph
        A traced model, the teacher; it is not changed.
    plan
        What :func:`clusterprune.oneshot` (or another method) made for it.
    images
        Unlabelled, normalised inputs, as those of :func:`clusterprune.oneshot`; they may be the same.
    seconds, steps
        Exactly one of them: for how long.
    seed
        Of the order of the images, and of how they are mirrored and moved.
    divergence
        How far outputs are from the original's, as in :func:`clusterprune.oneshot`.
    out
        A file that keeps what was reached, and from which a run that was stopped goes on.
    progress
        Called with (phase, done, total).

    Returns
    -------
    Plan
        With new tensors in `replaced`; its `notes["distil"]` says how far the outputs were from the original's on
        images held out, before and after. If they did not come closer, the plan's tensors are as they were.

    Raises
    ------
    ArgumentError
        For a bad option, or images that do not fit the traced example.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
    >>> graph, images = cp.trace(net, torch.zeros(1, 3, 8, 8)), torch.randn(64, 3, 8, 8)
    >>> plan = cp.oneshot(graph, images, keep_macs=0.5)
    >>> plan = cp.distil(graph, plan, images, steps=20)
    >>> cp.apply(net, plan, graph=graph)[0].out_channels
    8
    """
    check_graph(graph)
    check_instance("plan", plan, Plan, "make one with clusterprune.oneshot")
    check_seed(seed)
    check_progress(progress)
    if (seconds is None) == (steps is None):
        raise ArgumentError(f"give one of seconds and steps, but got seconds={seconds!r} and steps={steps!r}")
    for name, value in (("seconds", seconds), ("steps", steps)):
        if value is not None:
            check_number(name, value)
            if not 0 < value <= _MOST:
                raise ArgumentError(f"{name} must be positive and at most {_MOST:,}, but got {name}={value!r}")
    if steps is not None and steps != int(steps):
        raise ArgumentError(f"steps must be a whole number, but got steps={steps!r}")
    config = Distil() if config is None else config
    check_instance("config", config, Distil, "write Distil(rate=1e-4)")
    inputs = whole_batches(graph, inputs_of(graph, images, seed))
    lesson = _Lesson(graph, plan, inputs, config, seed, divergence or BY_KIND)
    lesson.learn(seconds, None if steps is None else int(steps), None if out is None else Path(out), progress)
    return lesson.plan()


_MOST = 10_000_000
"""Most seconds or steps: sixteen weeks."""


class _Lesson:
    """Teacher and student, and how far they have come."""

    def __init__(
        self, graph: ChannelGraph, plan: Plan, inputs: tuple[Tensor, ...], config: Distil, seed: int, by: Divergence
    ) -> None:
        self.graph, self.before, self.config, self.seed, self.divergence = graph, plan, config, seed, by.divergence
        fixed = graph.batch_size.fixed is not None
        self.size = graph.batch_size.traced if fixed else min(config.batch, gradient_batch_size(graph))
        kept = max(self.size, round(config.held_out * len(inputs[0]))) // self.size * self.size
        kept = kept if kept < len(inputs[0]) else 0  # a single batch serves for both
        order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(seed))
        self.held_out = tuple(t[order[:kept].to(t.device)] for t in inputs) if kept else inputs
        self.images = tuple(t[order[kept:].to(t.device)] for t in inputs)

        removed = removed_labels(graph, plan)
        state = compact_state(graph, plan)
        self.teacher = Program(graph)
        self.student = Program(graph, with_new_biases(graph, state, rewrite(graph, removed)))
        self.teacher_weights = self.teacher.weights({k: t.detach() for k, t in named_tensors(graph).items()})
        own = dict(graph.model.named_buffers())
        used = {*graph.inputs.values(), *(path for path in state if path not in named_tensors(graph))}
        self.learnt = {
            path: tensor.detach().clone().requires_grad_(True)
            for path, tensor in state.items()
            if path in used and path not in own and tensor.is_floating_point()
        }
        self.start = {path: tensor.detach().clone() for path, tensor in self.learnt.items()}
        self.rest = {path: tensor.detach() for path, tensor in state.items() if path not in self.learnt}
        mask = ChannelMask(graph, removed)
        self.ends = {node.name: mask.kept(node.name) for node in block_ends(graph)}
        self.optimizer = torch.optim.Adam(self.learnt.values(), lr=config.rate)
        self.step, self.elapsed = 0, 0.0

    def learn(self, seconds: float | None, steps: int | None, out: Path | None, progress: Progress | None) -> None:
        """Learn for so long, from where an earlier run was stopped."""
        if out is not None and out.exists():
            self._restore(out)
        clock, saved = time.perf_counter() - self.elapsed, self.elapsed
        while True:
            done = self.step / steps if steps is not None else self.elapsed / (seconds or 1.0)
            if progress is not None:
                progress("distillation", int(1000 * min(done, 1.0)), 1000)
            if done >= 1:
                break
            warm = min(1.0, (done + 1e-3) / 0.05)
            self.optimizer.param_groups[0]["lr"] = self.config.rate * warm * 0.5 * (1 + math.cos(math.pi * done))
            self._step()
            self.step += 1
            self.elapsed = time.perf_counter() - clock
            if out is not None and self.elapsed > saved + self.config.save_every:
                self._save(out)
                saved = self.elapsed
        if out is not None:
            self._save(out)

    def _step(self) -> None:
        """Take one step."""
        generator = torch.Generator().manual_seed((self.seed << 32 | self.step) % (1 << 63))
        chosen = torch.randint(len(self.images[0]), (self.size,), generator=generator)
        batch = varied(tuple(t[chosen.to(t.device)] for t in self.images), generator)
        with torch.no_grad():
            expected, wanted = self._pass(self.teacher, self.teacher_weights, batch, self.ends)
        with torch.enable_grad():
            weights = self.student.weights({**self.rest, **self.learnt})
            actual, got = self._pass(self.student, weights, batch, self.ends)
            loss = self.divergence(expected, actual).mean()
            parts = [_relative(wanted[name], got[name], kept) for name, kept in self.ends.items()]
            if parts:
                loss = loss + self.config.features * torch.stack(parts).mean().to(loss)
            gradients = torch.autograd.grad(loss, list(self.learnt.values()), allow_unused=True)
        for tensor, gradient in zip(self.learnt.values(), gradients, strict=True):
            tensor.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.learnt.values(), self.config.clip)
        self.optimizer.step()

    def _pass(
        self, program: Program, weights: Mapping[str, Any], batch: tuple[Tensor, ...], ends: Mapping[str, Any]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the outputs, and the features where blocks end."""
        values = ChainMap(program.bind(batch), dict(weights))
        features = dict(program.visit(values, ends))
        return [values[name] for name in program.differentiable], features

    def compare(self, state: Mapping[str, Tensor]) -> float:
        """Return the mean divergence from the original on the images held out."""
        total = 0.0
        with torch.no_grad():
            weights = self.student.weights({**self.rest, **state})
            for start in range(0, len(self.held_out[0]), self.size):
                batch = tuple(t[start : start + self.size] for t in self.held_out)
                expected, _ = self._pass(self.teacher, self.teacher_weights, batch, {})
                actual, _ = self._pass(self.student, weights, batch, {})
                total += float(self.divergence(expected, actual).sum())
        return total / len(self.held_out[0])

    def plan(self) -> Plan:
        """Return the plan with what was learnt, if that is closer to the original."""
        after = {path: tensor.detach() for path, tensor in self.learnt.items()}
        before, now = self.compare(self.start), self.compare(after)
        facts = {
            "steps": self.step,
            "seconds": round(self.elapsed, 1),
            "images": len(self.images[0]),
            "divergence_before": before,
            "divergence_after": now,
            "taken": now < before,
            "config": asdict(self.config),
        }
        fresh = {path: tensor.cpu() for path, tensor in after.items()} if now < before else {}
        notes = {**self.before.notes, "distil": facts}
        return replace(self.before, replaced={**self.before.replaced, **fresh}, notes=notes)

    def _save(self, out: Path) -> None:
        tensors = {f"learnt.{path}": tensor.detach() for path, tensor in self.learnt.items()}
        for path, tensor in self.learnt.items():
            for name, value in self.optimizer.state[tensor].items():
                tensors[f"{name}.{path}"] = value
        tensors["begun_with"] = self._begun_with()
        tensors["progress"] = torch.tensor([self.step, self.elapsed], dtype=torch.float64)
        write_file(out, tensor_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))

    def _begun_with(self) -> Tensor:
        """Return a digest of the seed and of the compact network as it was."""
        start = {path: tensor.cpu().contiguous() for path, tensor in self.start.items()}
        digest = hashlib.sha256(str(self.seed).encode() + tensor_bytes(start)).digest()
        return torch.tensor(list(digest), dtype=torch.uint8)

    def _restore(self, out: Path) -> None:
        """Go on from a file.

        Raises
        ------
        ArgumentError
            If it belongs to another network, plan or seed.
        """
        tensors, _ = read_tensors(out)
        begun_with = tensors.get("begun_with")
        if begun_with is None or not torch.equal(begun_with, self._begun_with()):
            raise ArgumentError(f"{out} belongs to another network, plan or seed; remove it to begin anew")
        for path, tensor in self.learnt.items():
            with torch.no_grad():
                tensor.copy_(tensors[f"learnt.{path}"])
            if f"exp_avg.{path}" in tensors:
                self.optimizer.state[tensor] = {
                    "step": tensors[f"step.{path}"],
                    "exp_avg": tensors[f"exp_avg.{path}"].to(tensor),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{path}"].to(tensor),
                }
        self.step, self.elapsed = int(tensors["progress"][0]), float(tensors["progress"][1])


def block_ends(graph: ChannelGraph) -> list[fx.Node]:
    """Return where a network's blocks end: sums of two maps, and the last maps of every resolution.

    Only maps of four dimensions count (images, channels, height, width).
    """
    maps = [
        node
        for node in graph.fx.nodes
        if node.op == "call_function"
        and isinstance(value := node.meta.get("val"), Tensor)
        and value.ndim == 4
        and value.is_floating_point()
        and value.shape[2:].numel() > 1
        and any(isinstance(n.meta.get("val"), Tensor) and n.op == "call_function" for n in node.all_input_nodes)
    ]
    sums = [
        node
        for node in maps
        if is_addition(node)
        and sum(n.op == "call_function" for n in node.all_input_nodes) == 2
        and all(n.meta["val"].shape == node.meta["val"].shape for n in node.all_input_nodes)
    ]
    last = {tuple(node.meta["val"].shape[2:]): node for node in maps}
    chosen = {node.name for node in (*sums, *last.values())}
    return [node for node in maps if node.name in chosen]


def varied(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return images, half of them mirrored, all moved by up to an eighth of their side; other inputs as they are."""
    if len(batch) != 1 or batch[0].ndim != 4 or not batch[0].is_floating_point():
        return batch
    images = batch[0]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    mirrored = mirrored.to(images.device)[:, None, None, None]
    images = torch.where(mirrored, images.flip(3), images)
    height, width = images.shape[2:]
    reach = (height // 8, width // 8)
    if min(reach) < 1:
        return (images,)
    padded = functional.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    rows = torch.randint(0, 2 * reach[0] + 1, (len(images),), generator=generator)
    columns = torch.randint(0, 2 * reach[1] + 1, (len(images),), generator=generator)
    moved = [padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(zip(rows, columns, strict=True))]
    return (torch.stack(moved).contiguous(memory_format=torch.channels_last),)


def _relative(wanted: Tensor, got: Tensor, kept: list[Any]) -> Tensor:
    """Return the squared difference of features, relative to how much the original's vary."""
    for dim, indices in enumerate(kept):
        if indices is not None:
            wanted = wanted.index_select(dim, torch.from_numpy(indices).to(wanted.device))
    wanted, got = wanted.float(), got.float()
    varies = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().mean()
    return (got - wanted).square().mean() / varies.clamp_min(1e-12)
