"""Plans: which channels stay, and what they take over. Data, not code.

A plan is written as `plan.json` (validated, versioned) beside `plan.safetensors` (its matrices). Nothing in
it is executed, and nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clusterprune.errors import PlanError
from clusterprune.files import atomic_folder
from clusterprune.graph import ChannelGraph

VERSION = 1


@dataclass(frozen=True, eq=False)
class Merge:
    """What happens to one group.

    At the input of each consumer, the group's features F (channels, …) are replaced by
    `mixing @ F[kept] + offset`.

    Attributes
    ----------
    group
        Name of the group in the graph.
    kept
        Indices of the channels that stay, ascending, shape (k,).
    mixing
        Matrix (channels, k) for each consumer, by the path of its weight. A consumer without one drops the
        removed channels.
    offset
        Constant (channels,) for each consumer, by the path of its weight.
    """

    group: str
    kept: np.ndarray
    mixing: Mapping[str, Tensor] = field(default_factory=dict)
    offset: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plan:
    """A merge for each group that changes, and the refitted tensors that replace what mixing gives.

    Attributes
    ----------
    merges
        One merge per group; groups without one stay whole.
    replaced
        Parameters and buffers, by path and in their shape after the cut, that are solved anew.
    model
        Shape of every parameter and buffer of the model that the plan belongs to.
    weights
        Digest of that model's weights.
    example
        Shapes and dtypes of the example input, from which the plan can be replayed.
    notes
        Free-form facts: method, budget, seconds.
    """

    merges: tuple[Merge, ...]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    model: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: str = ""
    example: tuple[Mapping[str, Any], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        merges: tuple[Merge, ...],
        replaced: Mapping[str, Tensor] | None = None,
        **notes: Any,
    ) -> "Plan":
        """Make a plan for a traced model, with the model's fingerprint."""
        shapes, digest = fingerprint(graph)
        return cls(merges, replaced or {}, shapes, digest, describe_example(graph), notes)

    @property
    def by_group(self) -> dict[str, Merge]:
        """The merges by the name of their group."""
        return {merge.group: merge for merge in self.merges}

    def check(self, graph: ChannelGraph) -> None:
        """Check that the plan belongs to a traced model.

        Raises
        ------
        PlanError
            If shapes or weights differ, a group does not exist or is frozen, or a merge is impossible.
        """
        shapes, digest = fingerprint(graph)
        if self.model:
            different = [k for k in {**shapes, **self.model} if tuple(self.model.get(k, ())) != shapes.get(k)]
            if different:
                raise PlanError(
                    f"the plan belongs to another model: {len(different)} tensors differ in name or shape, "
                    f"first {', '.join(sorted(different)[:5])}. Apply it to the model that it was made for."
                )
        carries_values = bool(self.replaced) or any(m.mixing for m in self.merges)
        if self.weights and carries_values and self.weights != digest:
            raise PlanError(
                "the plan was made for the same architecture with other weights, and it carries matrices fitted to "
                "them. Load the original weights, or make a new plan."
            )
        for merge in self.merges:
            _check_merge(merge, graph)

    def save(self, folder: str | Path) -> None:
        """Write `plan.json` and `plan.safetensors`.

        Raises
        ------
        OutputError
            If the folder exists or cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        merges = []
        for index, merge in enumerate(self.merges):
            for kind, table in (("mixing", merge.mixing), ("offset", merge.offset)):
                tensors.update({f"merges.{index}.{kind}.{path}": t.contiguous() for path, t in table.items()})
            merges.append(
                {
                    "group": merge.group,
                    "kept": [int(i) for i in merge.kept],
                    "mixing": sorted(merge.mixing),
                    "offset": sorted(merge.offset),
                }
            )
        tensors.update({f"replaced.{path}": t.detach().cpu().contiguous() for path, t in self.replaced.items()})
        with atomic_folder(folder) as temporary:
            save_file(tensors, temporary / "plan.safetensors")
            document = {
                "format": "clusterprune-plan",
                "version": VERSION,
                "merges": merges,
                "replaced": sorted(self.replaced),
                "model": {path: list(shape) for path, shape in self.model.items()},
                "weights": self.weights,
                "example": list(self.example),
                "tensors_sha256": _sha256(temporary / "plan.safetensors"),
                "notes": dict(self.notes),
            }
            (temporary / "plan.json").write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Read a plan back.

        Raises
        ------
        PlanError
            If a file is missing, truncated, altered or of another version.
        """
        folder = Path(folder)
        try:
            document = _Document.model_validate_json((folder / "plan.json").read_text())
        except FileNotFoundError as error:
            raise PlanError(f"{folder} holds no plan.json; give the folder that Plan.save wrote") from error
        except (ValidationError, ValueError, OSError) as error:
            raise PlanError(f"{folder / 'plan.json'} is not a valid plan: {_brief(error)}") from error
        path = folder / "plan.safetensors"
        try:
            if _sha256(path) != document.tensors_sha256:
                raise PlanError(f"{path} was truncated or altered since the plan was written; make the plan again")
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise PlanError(f"{path} cannot be read: {error}") from error
        try:
            merges = tuple(
                Merge(
                    m.group,
                    np.array(m.kept, dtype=np.int64),
                    {p: tensors[f"merges.{i}.mixing.{p}"] for p in m.mixing},
                    {p: tensors[f"merges.{i}.offset.{p}"] for p in m.offset},
                )
                for i, m in enumerate(document.merges)
            )
            replaced = {p: tensors[f"replaced.{p}"] for p in document.replaced}
        except KeyError as error:
            raise PlanError(f"{path} lacks the tensor {error}; make the plan again") from error
        shapes = {p: tuple(s) for p, s in document.model.items()}
        return cls(merges, replaced, shapes, document.weights, tuple(document.example), document.notes)


class _MergeDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")
    group: str
    kept: list[int] = Field(min_length=1)
    mixing: list[str]
    offset: list[str]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["clusterprune-plan"]
    version: Literal[1]
    merges: list[_MergeDocument]
    replaced: list[str]
    model: dict[str, list[int]]
    weights: str
    example: list[dict[str, Any]]
    tensors_sha256: str
    notes: dict[str, Any]


def fingerprint(graph: ChannelGraph) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shapes of a model's tensors and a digest of their values."""
    return {path: tuple(tensor.shape) for path, tensor in graph.model.state_dict().items()}, digest_of(graph.model)


def digest_of(model: nn.Module) -> str:
    """Return a digest of the values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for path, tensor in model.state_dict().items():
        # Viewing the bytes works for every dtype, also those that NumPy lacks.
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(path.encode())
        digest.update(data.numpy().data)
    return digest.hexdigest()


def describe_example(graph: ChannelGraph) -> tuple[dict[str, Any], ...]:
    """Return shape, dtype and keyword of each example input (a plain value stays as it is)."""
    described: list[dict[str, Any]] = []
    for keyword, value in [*((None, a) for a in graph.args), *graph.kwargs.items()]:
        entry: dict[str, Any] = {"keyword": keyword}
        if isinstance(value, Tensor):
            entry |= {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        else:
            entry["value"] = value
        described.append(entry)
    return tuple(described)


def rebuild_example(described: tuple[Mapping[str, Any], ...]) -> Any:
    """Return an example input from its description."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for entry in described:
        value = entry.get("value")
        if "shape" in entry:
            dtype = getattr(torch, str(entry["dtype"]), None)
            if not isinstance(dtype, torch.dtype):
                raise PlanError(f"the plan's example has the unknown dtype {entry['dtype']!r}")
            value = torch.zeros([int(s) for s in entry["shape"]], dtype=dtype)
        if entry.get("keyword") is None:
            args.append(value)
        else:
            kwargs[str(entry["keyword"])] = value
    if args and kwargs:
        raise PlanError("the plan's example mixes positional and keyword inputs; pass graph= to apply")
    return kwargs or tuple(args)


def _check_merge(merge: Merge, graph: ChannelGraph) -> None:
    group = graph.by_name.get(merge.group)
    if group is None:
        raise PlanError(f"the plan merges the group {merge.group!r}, which this model does not have")
    kept = merge.kept
    if group.frozen is not None and len(kept) < group.width:
        raise PlanError(f"the group {merge.group!r} must stay whole: {group.frozen}")
    if not len(kept) or len(set(kept.tolist())) != len(kept) or kept.min() < 0 or kept.max() >= group.width:
        raise PlanError(
            f"kept channels of {merge.group!r} must be distinct indices in 0..{group.width - 1}, and at least one"
        )
    if (np.diff(kept) < 0).any():
        raise PlanError(f"kept channels of {merge.group!r} must be in ascending order")
    counts = np.bincount(group.blocks[kept], minlength=group.n_blocks)
    if len(set(counts.tolist())) > 1:
        raise PlanError(
            f"each of the {group.n_blocks} blocks of {merge.group!r} must keep the same number of channels, "
            f"but they keep {counts.tolist()}"
        )
    consumers = {use.path for use in group.consumers}
    for kind, table, shape in (
        ("mixing", merge.mixing, (group.width, len(kept))),
        ("offset", merge.offset, (group.width,)),
    ):
        for path, tensor in table.items():
            if path not in consumers:
                raise PlanError(f"{kind} of {merge.group!r} names {path!r}, which does not read this group")
            if tuple(tensor.shape) != shape:
                raise PlanError(f"{kind} of {merge.group!r} for {path} has shape {tuple(tensor.shape)}, not {shape}")
            if not bool(torch.isfinite(tensor).all()):
                raise PlanError(f"{kind} of {merge.group!r} for {path} holds NaN or infinity")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'document'}: {first['msg']}"
    return str(error)
