"""Plans: which channels stay, and what they take over. Data, not code.

A plan is written as `plan.json` (validated, versioned) beside `plan.safetensors` (its matrices). Nothing in
it is executed, and nothing is unpickled. Both files carry their digests. A plan of version 1 has none for
`plan.json`: such a plan may also be written, or changed, by hand.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from clusterprune.arguments import check_graph
from clusterprune.errors import ArgumentError, PlanError
from clusterprune.files.documents import (
    Channels,
    ExampleDocument,
    Hexadecimal,
    Shape,
    check_plain,
    check_seal,
    check_version,
    repeated,
    unique,
)
from clusterprune.files.reading import ReadError, explain, read_json, seal
from clusterprune.files.tensors import is_finite, read_tensors, write_tensors
from clusterprune.files.writing import atomic_folder
from clusterprune.graph import ChannelGraph
from clusterprune.tables import facts_of, first_widths, html_lines, html_part, html_table, name_of, plural

if TYPE_CHECKING:
    from clusterprune.surgery.summary import PlanSummary

VERSION = 2
LARGEST_EXAMPLE = 1 << 28
"""Most numbers in one example input of a plan: a gigabyte in float32."""


@dataclass(frozen=True, eq=False)
class Merge:
    """What happens to one group.

    At the input of each consumer, the group's features F (channels, …) are replaced by
    `mixing @ F[kept] + offset`. Merges are equal if group, channels and all tensors are; as tensors can be written to,
    there is no hash.

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

    Raises
    ------
    ArgumentError
        If `kept` is no sequence of whole numbers.
    """

    group: str
    kept: np.ndarray
    mixing: Mapping[str, Tensor] = field(default_factory=dict)
    offset: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take any sequence of whole numbers for the kept channels."""
        object.__setattr__(self, "kept", _indices(self.kept, self.group))

    def __eq__(self, other: object) -> bool:
        """Compare group, kept channels, and the tensors with their dtypes."""
        if not isinstance(other, Merge):
            return NotImplemented
        return (
            self.group == other.group
            and np.array_equal(self.kept, other.kept)
            and _same_tensors(self.mixing, other.mixing)
            and _same_tensors(self.offset, other.offset)
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        """Say how many channels stay, and how many layers take something over."""
        taken = "".join(f", {name} for {plural(len(table), 'layer')}" for name, table in self._tables if table)
        return f"<Merge of {name_of(self.group)}: keeps {plural(len(self.kept), 'channel')}{taken}>"

    @property
    def _tables(self) -> tuple[tuple[str, Mapping[str, Tensor]], ...]:
        """What consumers take over, by the name of each kind."""
        return ("mixing", self.mixing), ("offset", self.offset)


@dataclass(frozen=True, eq=False)
class Plan:
    """A merge for each group that changes, and the refitted tensors that replace what mixing gives.

    Plans are equal if they do the same to the same network: all is compared but `notes`, which say how a plan came
    about. The order of merges counts, for sums are rounded in it. As tensors can be written to, there is no hash.

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
    approximate
        Whether the model was traced with `approximate=True`, as it has to be to find the same groups.
    """

    merges: tuple[Merge, ...]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    model: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: str = ""
    example: tuple[Mapping[str, Any], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    approximate: bool = False

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
        approximate = graph.walk.allow_approximate
        return cls(merges, replaced or {}, shapes, digest, describe_example(graph), notes, approximate)

    @property
    def by_group(self) -> dict[str, Merge]:
        """The merges by the name of their group."""
        return {merge.group: merge for merge in self.merges}

    @property
    def widths(self) -> dict[str, int]:
        """The kept width of every group that the plan changes, by name; the others stay as wide as they are."""
        return {merge.group: len(merge.kept) for merge in self.merges}

    def summary(self, graph: ChannelGraph) -> "PlanSummary":
        """Say what the plan would make of the network: print what this returns.

        It counts the widths of all groups, MACs and parameters before and after, without cutting anything, and lists
        what is frozen and why.

        Parameters
        ----------
        graph
            A trace of the model that the plan was made for.

        Raises
        ------
        PlanError
            If the plan does not belong to the model.

        Examples
        --------
        >>> import torch, clusterprune as cp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
        >>> summary = cp.Plan.of(graph, (cp.Merge("0", [0, 3, 5]),)).summary(graph)
        >>> summary.widths["0"], summary.macs.kept
        (BeforeAfter(before=8, after=3), 0.375)
        """
        check_graph(graph)
        from clusterprune.surgery.summary import summarize  # it counts what surgery leaves, which knows plans

        return summarize(graph, self)

    def __eq__(self, other: object) -> bool:
        """Compare all that tells what the plan does, and to which model; not the notes."""
        if not isinstance(other, Plan):
            return NotImplemented
        return (
            tuple(self.merges) == tuple(other.merges)
            and _same_tensors(self.replaced, other.replaced)
            and _shapes(self.model) == _shapes(other.model)
            and self.weights == other.weights
            and tuple(self.example) == tuple(other.example)
            and self.approximate == other.approximate
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        """Say who made the plan for which budget, and how wide the first groups become."""
        kept = f"keeps {first_widths(self.widths) or 'everything'}"
        replaced = f"; replaces {plural(len(self.replaced), 'tensor')}" if self.replaced else ""
        return f"<{self._headline()}: {kept}{replaced}>"

    def _repr_html_(self) -> str:
        """Describe the plan as a table for a notebook: the kept width of each group, and what is taken over."""
        rows = [
            (
                name_of(m.group),
                str(len(m.kept)),
                *(plural(len(table), "layer") if table else "" for _, table in m._tables),
            )
            for m in self.merges
        ]
        facts = ", ".join(f"{name}={value}" for name, value in facts_of(self.notes).items())
        replaced = f"{plural(len(self.replaced), 'tensor')} replaced" if self.replaced else ""
        table = html_table(("group", "kept", "mixing", "offset"), rows)
        return html_part(self._headline(), html_lines([line for line in (facts, replaced) if line]), table)

    def _headline(self) -> str:
        """Say who made the plan for which budget, and for how many groups."""
        facts = facts_of(self.notes)
        by = f" by {facts['method']}" if "method" in facts else ""
        asked = ", ".join(f"{name}={value}" for name, value in facts.items() if name.startswith("keep_"))
        return f"Plan{by} for {plural(len(self.merges), 'group')}" + (f", {asked}" if asked else "")

    def check(self, graph: ChannelGraph) -> None:
        """Check that the plan belongs to a traced model.

        Raises
        ------
        PlanError
            If shapes or weights differ, a group does not exist or is frozen, or a merge is impossible.
        """
        shapes = {path: tuple(tensor.shape) for path, tensor in graph.model.state_dict().items()}
        if self.model:
            different = [k for k in {**shapes, **self.model} if tuple(self.model.get(k, ())) != shapes.get(k)]
            if different:
                raise PlanError(
                    f"the plan belongs to another model: {len(different)} tensors differ in name or shape, "
                    f"first {', '.join(sorted(different)[:5])}. Apply it to the model that it was made for."
                )
        carries_values = bool(self.replaced) or any(m.mixing for m in self.merges)
        if self.weights and carries_values and self.weights != digest_of(graph.model):
            raise PlanError(
                "the plan was made for the same architecture with other weights, and it carries matrices fitted to "
                "them. Load the original weights, or make a new plan."
            )
        if (twice := repeated(merge.group for merge in self.merges)) is not None:
            raise PlanError(f"the plan merges the group {twice!r} twice; join what its two merges say")
        for merge in self.merges:
            _check_merge(merge, graph)

    def save(self, folder: str | Path) -> None:
        """Write `plan.json` and `plan.safetensors`.

        Raises
        ------
        OutputError
            If the folder exists or cannot be written.
        ArgumentError
            If a note is nothing that JSON can hold.
        """
        tensors: dict[str, Tensor] = {f"replaced.{path}": tensor for path, tensor in self.replaced.items()}
        merges = []
        for index, merge in enumerate(self.merges):
            for kind, table in merge._tables:
                tensors |= {f"merges.{index}.{kind}.{path}": tensor for path, tensor in table.items()}
            merges.append(
                {
                    "group": merge.group,
                    "kept": merge.kept.tolist(),
                    "mixing": sorted(merge.mixing),
                    "offset": sorted(merge.offset),
                }
            )
        document = {
            "format": "clusterprune-plan",
            "version": VERSION,
            "merges": merges,
            "replaced": sorted(self.replaced),
            "model": {path: list(shape) for path, shape in self.model.items()},
            "weights": self.weights,
            "example": list(self.example),
            "notes": dict(self.notes),
        }
        if self.approximate:
            document["approximate"] = True
        check_plain(document, "the plan's notes or example")
        with atomic_folder(folder) as temporary:
            document["tensors_sha256"] = write_tensors(temporary / "plan.safetensors", tensors)
            (temporary / "plan.json").write_text(json.dumps(seal(document), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Read a plan back.

        Raises
        ------
        PlanError
            If a file is missing, truncated, altered, makes no sense, or is of another version.
        """
        if not isinstance(folder, str | Path):
            raise ArgumentError(
                f"folder must be the path that Plan.save wrote to, but got folder={type(folder).__name__}"
            )
        folder = Path(folder)
        path = folder / "plan.json"
        try:
            content = check_version(read_json(path), VERSION)
            document = _Document.model_validate(content)
            check_seal(content)
        except ReadError as error:
            if error.missing:
                raise PlanError(f"{folder} holds no plan.json; give the folder that Plan.save wrote") from error
            raise PlanError(f"{path} is not a valid plan: it {error}; make the plan again") from error
        except ValidationError as error:
            raise PlanError(f"{path} is not a valid plan: {explain(error)}; make the plan again") from error
        path = folder / "plan.safetensors"
        try:
            tensors, _ = read_tensors(path, document.tensors_sha256)
        except ReadError as error:
            raise PlanError(f"{path} {error}; make the plan again") from error
        _check_tensors(document, tensors, path)
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
        shapes = {p: tuple(s) for p, s in document.model.items()}
        example = tuple(entry.plain() for entry in document.example)
        return cls(merges, replaced, shapes, document.weights, example, document.notes, document.approximate)


class _MergeDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    group: str
    kept: Channels
    mixing: Annotated[list[str], AfterValidator(unique)]
    offset: Annotated[list[str], AfterValidator(unique)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["clusterprune-plan"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    merges: list[_MergeDocument]
    replaced: Annotated[list[str], AfterValidator(unique)]
    model: dict[str, Shape]
    weights: Hexadecimal | Literal[""]
    example: list[ExampleDocument]
    tensors_sha256: Hexadecimal
    notes: dict[str, Any]
    approximate: bool = False
    sha256: Hexadecimal | None = None

    @field_validator("merges")
    @classmethod
    def _check_groups(cls, merges: list[_MergeDocument]) -> list[_MergeDocument]:
        unique([merge.group for merge in merges])
        return merges


def _check_tensors(document: _Document, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that the file holds the tensors that the document names, no others, and only numbers in them."""
    named = {f"replaced.{p}" for p in document.replaced}
    for index, merge in enumerate(document.merges):
        named |= {f"merges.{index}.mixing.{p}" for p in merge.mixing}
        named |= {f"merges.{index}.offset.{p}" for p in merge.offset}
    if lacking := sorted(named - tensors.keys()):
        raise PlanError(f"{path} lacks the tensor {lacking[0]!r}; make the plan again")
    if foreign := sorted(tensors.keys() - named):
        raise PlanError(f"{path} holds the tensor {foreign[0][:200]!r}, of which plan.json says nothing")
    for name, tensor in tensors.items():
        if not name.startswith("replaced.") and not tensor.is_floating_point():
            raise PlanError(f"{path}: {name} must hold floating-point numbers, but holds {tensor.dtype}")
        if not is_finite(tensor):
            raise PlanError(f"{path}: {name} holds NaN or infinity; make the plan again")


def _same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Tell whether two tables hold equal tensors of the same dtypes, on whatever devices."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[path].dtype and torch.equal(tensor.cpu(), other[path].cpu())
        for path, tensor in one.items()
    )


def _shapes(model: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(shape) for path, shape in model.items()}


def _indices(kept: Any, group: str) -> np.ndarray:
    """Return channel indices as int64 (k,)."""
    try:
        found = np.asarray(kept.cpu() if isinstance(kept, Tensor) else kept)
    except (TypeError, ValueError):
        found = np.asarray(None)
    if found.ndim == 1 and found.dtype == bool:
        raise ArgumentError(f"kept={kept!r} of {group!r} is a mask; give the indices, numpy.flatnonzero(mask)")
    if found.ndim != 1 or (len(found) and not np.issubdtype(found.dtype, np.integer)):
        raise ArgumentError(
            f"kept={kept!r} of {group!r} must be a sequence of channel indices, which are whole numbers, such as [0, 2]"
        )
    return found.astype(np.int64)


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
    """Return an example input from its description.

    Raises
    ------
    PlanError
        If the description makes no sense, or is of something too large to be an example.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for entry in described:
        value = entry.get("value")
        if entry.get("shape") is not None:
            dtype = getattr(torch, str(entry.get("dtype")), None)
            if not isinstance(dtype, torch.dtype):
                raise PlanError(f"the plan's example has the unknown dtype {entry.get('dtype')!r}")
            shape = [int(s) for s in entry["shape"]]
            if math.prod(shape) > LARGEST_EXAMPLE:
                raise PlanError(
                    f"the plan's example has the shape {tuple(shape)}, which is too large to be one; pass graph= to "
                    "apply, or make the plan again"
                )
            value = torch.zeros(shape, dtype=dtype)
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
    selection = torch.zeros(group.width, len(kept))
    selection[torch.from_numpy(kept), torch.arange(len(kept))] = 1
    rigid = {use.path for use in group.consumers if not use.mixable}
    for kind, table, shape in (
        ("mixing", merge.mixing, (group.width, len(kept))),
        ("offset", merge.offset, (group.width,)),
    ):
        for path, tensor in table.items():
            if path not in consumers:
                raise PlanError(f"{kind} of {merge.group!r} names {path!r}, which does not read this group")
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise PlanError(f"{kind} of {merge.group!r} for {path} must be a floating-point tensor, but is {what}")
            if tuple(tensor.shape) != shape:
                raise PlanError(f"{kind} of {merge.group!r} for {path} has shape {tuple(tensor.shape)}, not {shape}")
            if not is_finite(tensor):
                raise PlanError(f"{kind} of {merge.group!r} for {path} holds NaN or infinity")
            if path in rigid and not (kind == "mixing" and torch.equal(tensor.to(selection), selection)):
                raise PlanError(
                    f"{kind} of {merge.group!r} mixes {path}, from which a kernel is computed: its inputs can be cut, "
                    "but nothing can be handed over to them. Leave it out of the merge."
                )
