"""Apply a plan to a model: the only code that changes a network, and it changes a copy.

One rule: *producers keep the rows in `kept`; consumers' input weights become W · mixing, and their bias gains
W · offset.* :func:`.masking.masked_state` carries the rule out without cutting (removed columns are zero), and
:func:`.masking.compact_state` cuts what it returns. That the two agree is the library's central law.
"""

import functools
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from clusterprune.arguments import type_name
from clusterprune.errors import ArgumentError, UntrainableWarning
from clusterprune.graph import ChannelGraph, trace
from clusterprune.graph.arguments import check_graph, check_model
from clusterprune.graph.program import Program, moved, named_tensors
from clusterprune.graph.rewrite import masked_norms, rewrite
from clusterprune.graph.throwaway import duplicate
from clusterprune.plan import Merge, Plan, describe_example, rebuild_example
from clusterprune.surgery.bias_homes import with_new_biases
from clusterprune.surgery.cutting import Cutter, cutter, removed_labels
from clusterprune.surgery.equivalence import Equivalence
from clusterprune.surgery.history import Stage, add_stage
from clusterprune.surgery.masking import embed, mask, masked_state
from clusterprune.surgery.random_tensors import State, random_state, turned
from clusterprune.surgery.rebuild import rebuild
from clusterprune.surgery.resize import resize_module


def apply(model: nn.Module, plan: Plan, *, graph: ChannelGraph | None = None) -> nn.Module:
    """Return a smaller copy of a model.

    The copy is of the model's own class, with its layers resized, wherever the model's code still fits
    them. Code with sizes written into it (a padded shortcut with a fixed number of channels, a split into
    fixed parts) does not: then the copy is a `torch.fx.GraphModule` over the same, resized layers, with the
    same parameter names. Both train, export and save. Which one it became is in
    :func:`clusterprune.surgery.history.describe`.

    Parameters
    ----------
    model
        The model that the plan was made for; never changed.
    plan
        What to keep and what to hand over.
    graph
        The model's graph, if it is at hand; otherwise, or if the model has moved to another device since, it is
        traced again.

    Raises
    ------
    PlanError
        If the plan belongs to another model or asks for an impossible cut.
    ArgumentError, ModelError
        If an argument is of another type, or two are swapped.
    """
    _check(model, plan, graph)
    if graph is None or graph.model is not model or moved(graph) is not None:
        graph = trace(model, rebuild_example(plan.example), approximate=plan.approximate)
    plan.check(graph)
    cut = cutter(graph, plan)
    state = cut.all(masked_state(graph, plan))
    removed = removed_labels(graph, plan)
    changes = with_new_biases(graph, state, rewrite(graph, removed))
    equivalence = _equivalence(graph, plan, state, cut)
    small = duplicate(model)
    attributes = resize_module(small, graph, state, changes)
    different = equivalence.differs(small, ("traced", "size and batch")) or equivalence.differs(small, ("training",))
    # A head that only training uses, and that no trace could follow, says nothing against the code of evaluation.
    rewired = bool(different) and not ("training" in different and graph.training_unknown is not None)
    untrainable = None
    if rewired:
        small, untrainable = rebuild(small, graph, changes, equivalence)
    elif different:
        untrainable = (
            f"{graph.training_unknown}. Leave the layers that it reads alone with ignore=, or take such heads out of "
            "the model"
        )
    if untrainable is not None:
        warnings.warn(f"{type(model).__name__} cannot be trained after this cut: {untrainable}", UntrainableWarning, 2)
    kept = {merge.group: [int(i) for i in merge.kept] for merge in plan.merges}
    added = sorted(state.keys() - named_tensors(graph).keys())
    listed = model.state_dict().keys()
    stage = Stage(
        rewired,
        attributes,
        kept,
        list(describe_example(graph)),
        added,
        approximate=graph.walk.allow_approximate,
        buffers=[p for p, buffer in model.named_buffers() if p not in listed and state[p].shape != buffer.shape],
        untrainable=untrainable,
    )
    return add_stage(small, model, stage)


def _equivalence(graph: ChannelGraph, plan: Plan, state: State, cut: Cutter) -> Equivalence:
    """Prepare to compare cut modules with the masked original, on tensors that hide nothing."""
    bare = replace(plan, merges=tuple(Merge(merge.group, merge.kept) for merge in plan.merges), replaced={})
    named = named_tensors(graph)

    @functools.lru_cache(maxsize=1)  # of the largest models there is room for no more
    def first(dtype: torch.dtype | None, gain: float) -> tuple[State, State]:
        masked = random_state(named, dtype, gain)
        mask(graph, bare, masked, masked)
        for path, bias in random_state({p: nn.Parameter(state[p]) for p in state.keys() - named.keys()}, dtype).items():
            embed(graph, bare, masked, path, bias)
        return masked, cut.all(masked)

    def drawn(dtype: torch.dtype | None, draw: int, gain: float = 1.0) -> tuple[State, State]:
        masked, small = first(dtype, gain)
        return (turned(masked, named), turned(small, named)) if draw else (masked, small)

    def damped(dtype: torch.dtype | None, draw: int) -> tuple[State, State]:
        return drawn(dtype, draw, _DAMPED)

    def own(dtype: torch.dtype | None, draw: int) -> tuple[State, State]:  # noqa: ARG001 (there is one such)
        pair = masked_state(graph, plan), state
        masked, small = ({k: t.to(dtype) if dtype and t.is_floating_point() else t for k, t in s.items()} for s in pair)
        return masked, small

    norms = masked_norms(graph, removed_labels(graph, plan))
    if not norms:
        return Equivalence(graph, (drawn, damped, own), cut.all)

    def program(masked: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The original's own norms cannot leave channels out of their statistics; those of its graph can.
        changed = with_new_biases(graph, masked, dict(norms))
        return Program(graph, changed, any_batch=False).run(masked, args, kwargs)

    return Equivalence(graph, (drawn, damped, own), cut.all, program)


_DAMPED = 0.6
"""Gain of kernels in networks so deep that with a gain of one they are chaotic."""


def _check(model: object, plan: object, graph: object) -> None:
    """Check the arguments of :func:`apply`.

    Raises
    ------
    ArgumentError, ModelError
        If one is of another type, or two are swapped.
    """
    if isinstance(model, Plan):
        raise ArgumentError(
            f"apply takes the model first, but got apply(Plan, {type_name(plan)}); write apply(model, plan)"
        )
    check_model(model)
    if not isinstance(plan, Plan):
        raise ArgumentError(
            f"plan must be a Plan, but got plan={type_name(plan)}; make one with clusterprune.oneshot, or read it with "
            "clusterprune.Plan.load(folder)"
        )
    if graph is not None:
        check_graph(graph)
