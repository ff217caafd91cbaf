"""A plan: a merge for each group that changes. It can be compared, checked, printed, written and read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from clusterprune.errors import ArgumentError, PlanError
from clusterprune.files.documents import repeated
from clusterprune.graph import ChannelGraph
from clusterprune.graph.arguments import check_graph
from clusterprune.plan.document import read_plan, write_plan
from clusterprune.plan.merge import Merge, check_merge, same_tensors, tables_of
from clusterprune.plan.origin import describe_example, digest_of, fingerprint
from clusterprune.tables import facts_of, first_widths, html_lines, html_part, html_table, name_of, plural

if TYPE_CHECKING:
    from clusterprune.surgery.summary import PlanSummary


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
            and same_tensors(self.replaced, other.replaced)
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
                *(plural(len(table), "layer") if table else "" for _, table in tables_of(m)),
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
            check_merge(merge, graph)

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
            for kind, table in tables_of(merge):
                tensors |= {f"merges.{index}.{kind}.{path}": tensor for path, tensor in table.items()}
            merges.append(
                {
                    "group": merge.group,
                    "kept": merge.kept.tolist(),
                    "mixing": sorted(merge.mixing),
                    "offset": sorted(merge.offset),
                }
            )
        content = {
            "merges": merges,
            "replaced": sorted(self.replaced),
            "model": {path: list(shape) for path, shape in self.model.items()},
            "weights": self.weights,
            "example": list(self.example),
            "notes": dict(self.notes),
        }
        if self.approximate:
            content["approximate"] = True
        write_plan(folder, content, tensors)

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
        document, tensors = read_plan(Path(folder))
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


def _shapes(model: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(shape) for path, shape in model.items()}
