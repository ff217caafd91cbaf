# pyright: reportUnnecessaryIsInstance=false
"""A network that was measured once, and what follows from that: a plan for any budget."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Unpack, get_args

import torch
from torch import Tensor, nn

from clusterprune.arguments import check_progress, check_seed, shown
from clusterprune.budget.allocation import CostModel, Quantity, example_batch
from clusterprune.budget.several import solve_all
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.images import Images, Progress, inputs_of, whole_batches
from clusterprune.merge import Merging, merged
from clusterprune.merge.bn_images import can_make_images, images_from_norms
from clusterprune.merge.data_free import noise_images
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.merge.elimination import RemovalOrder
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.measured import Measured, few_rows, images_for, moments_of
from clusterprune.merge.measured import measure as measure_layers
from clusterprune.merge.orders import kept_of, order_channels, with_losses
from clusterprune.merge.statistics import release_memory
from clusterprune.methods.budget import Budget, Goal, read_budget
from clusterprune.methods.meeting import check_reachable, plan_for
from clusterprune.methods.oneshot_settings import OneShot
from clusterprune.methods.shares import Curves, closest, hypotheses, sampled
from clusterprune.methods.sweep import Candidate, Candidates, Fit, as_budget
from clusterprune.plan import Plan
from clusterprune.surgery.apply import apply
from clusterprune.surgery.summary import left_by

_SKETCHED = 96
"""Images that a sweep compares ways to share on, and that a short refit looks at, at most."""


class Planner:
    """What :func:`measure` found of a network; :meth:`plan` makes a plan for a budget of it.

    Attributes
    ----------
    graph
        The traced model, with what is left alone frozen.
    seconds
        What measuring took, by phase.
    """

    def __init__(self, graph: ChannelGraph, config: OneShot, seed: int, divergence: Divergence) -> None:
        """Find the groups that may be cut.

        Raises
        ------
        BudgetError
            If there are none.
        """
        self.graph, self.seconds = graph, dict[str, float]()
        self._groups = [g for g in graph.prunable if config.residual_streams or len(g.producers) == 1]
        if not self._groups:
            raise BudgetError("no group of this model may be cut; print the graph to see why each is frozen")
        self._config, self._seed, self._divergence = config, seed, divergence
        self._cost = CostModel(graph)
        self._generator = torch.Generator().manual_seed(seed)
        self._data_free = self._made = False
        self._inputs: tuple[Tensor, ...] = ()
        self._found: tuple[Measured, dict[str, RemovalOrder]] | None = None

    def plan(self, *, progress: Progress | None = None, **budget: Unpack[Budget]) -> Plan:
        """Return the plan that :func:`clusterprune.oneshot` returns for this budget, to the last bit.

        Parameters
        ----------
        progress
            Called with (phase, done, total).
        **budget
            How much to keep, such as ``keep_macs=0.5``: see :class:`clusterprune.methods.budget.Budget`.

        Raises
        ------
        ArgumentError, BudgetError
            As :func:`clusterprune.oneshot`.
        """
        check_progress(progress)
        return self.plan_for(read_budget(budget), progress)

    def sweep(
        self,
        budgets: Iterable[float | str | Mapping[str, Any]],
        score: Callable[[nn.Module], float] | None = None,
        *,
        fit: Fit | None = None,
        progress: Progress | None = None,
        **rest: Unpack[Budget],
    ) -> Candidates:
        """Return what several budgets lead to, in their order, at little more than the cost of one.

        What is dear is neither repeated nor done in full: by which hypothesis budgets are shared is compared at the one
        in the middle, and kernels are fitted for a short while, on few images. :meth:`plan` of the budget that is
        chosen does both in full; its widths are most often the same, and what it makes is better.

        Parameters
        ----------
        budgets
            Shares of the multiply-adds, such as 0.5 or "50%", or mappings such as ``{"max_params": 1e6}``.
        score
            Is asked about every compact network. Not one of the test set, where a budget is chosen by it.
        fit
            "merge": by mixing matrices, which costs next to nothing. "quick": by a short refit. "full": as
            :meth:`plan`, whose plans these then are. None takes the first without a score, else the second.
        **rest
            What else holds for every budget, such as ``round_to=8``.

        Raises
        ------
        ArgumentError, BudgetError
            As :func:`clusterprune.oneshot`.
        """
        check_progress(progress)
        fit = ("merge" if score is None else "quick") if fit is None else fit
        if fit not in get_args(Fit):
            raise ArgumentError(f"fit must be 'merge', 'quick' or 'full', but got fit={shown(fit)}")
        asked = [{**rest, **as_budget(one)} for one in budgets]
        goals = [read_budget(one) for one in asked]
        for goal in goals:
            check_reachable(self._cost, goal, self._groups)
        shared: tuple[str, Curves] | None = None
        if goals and fit != "full":
            middle = sorted(goals, key=lambda goal: min(goal.shares(self._cost).values(), default=0.5))[len(goals) // 2]
            shared = self._shared(middle, self._fresh(), _Clock(), progress, most=_SKETCHED)
        found = Candidates()
        for number, (budget, goal) in enumerate(zip(asked, goals, strict=True)):
            plan = self.plan_for(goal, progress) if shared is None else self._sketch(goal, shared, fit)
            macs, params = (round(left_by(self._cost, quantity, plan)) for quantity in ("macs", "params"))
            worth = None if score is None else float(score(apply(self.graph.model, plan, graph=self.graph)))
            loss = plan.notes.get("predicted_loss")
            found.append(Candidate(budget, plan, macs // example_batch(self.graph), params, loss, worth))
            if progress and fit != "full":
                progress("budgets", number + 1, len(goals))
        return found

    def _sketch(self, goal: Goal, shared: tuple[str, Curves], fit: Fit) -> Plan:
        """Return a plan whose kernels are fitted for a short while, or not at all."""
        generator = self._fresh()
        plan, facts = self._choose(goal, shared, _Clock(), None)
        if fit == "quick" and plan.merges:
            images = images_for(self.graph, self._inputs, self._config.macs_to_spend, 18, 32, most=_SKETCHED)
            plan = self._quick().finish(self.graph, plan, images, generator=generator)
        return replace(plan, notes={"method": "oneshot", "fit": fit, **goal.asked, "seed": self._seed, **facts})

    def plan_for(self, goal: Goal, progress: Progress | None = None, *, forget: bool = False) -> Plan:
        """Return the plan for a budget that was read.

        Parameters
        ----------
        forget
            Let go of what was measured before the refit, which needs room; this is then the last plan.
        """
        check_reachable(self._cost, goal, self._groups)
        clock = _Clock()
        generator = self._fresh()
        plan, facts = self._choose(goal, self._shared(goal, generator, clock, progress), clock, progress)
        facts["curves"] = sampled(self._cost, self._known()[1])
        if forget:
            self._found = None
        release_memory()
        refit = self._config.refit
        if refit is not None and not self._data_free and plan.merges:
            plan = refit.finish(self.graph, plan, self._inputs, generator=generator, progress=progress)
        clock.lap("refit")
        images = len(self._inputs[0])
        notes = {
            "method": "oneshot",
            **goal.asked,
            "images": 0 if self._data_free or self._made else images,
            "made_images": images if self._made else 0,
            "seed": self._seed,
            "round_to": goal.limits.round_to,
            **goal.limits.facts(self.graph, plan.widths),
            "min_width": goal.limits.min_width,
            **facts,
            "config": asdict(self._config),
            "seconds": self.seconds | clock.seconds,
        }
        return replace(plan, notes=notes)

    def look(self, images: Images | None, progress: Progress | None, goal: Goal | None = None) -> None:
        """Measure what every layer reads, in which order the channels go, and what that costs: steps 1 to 3.

        Parameters
        ----------
        goal
            A budget that is to be met: if it cannot be, better to know now.
        """
        if goal is not None:
            check_reachable(self._cost, goal, self._groups)
        clock, graph, config, generator = _Clock(), self.graph, self._config, self._generator
        self._made = images is None and config.from_norms is not None and can_make_images(graph)
        self._data_free = images is None and not self._made
        if self._made:
            images = images_from_norms(graph, seed=self._seed, config=config.from_norms, progress=progress)
            clock.lap("images from batch norms")
        inputs = noise_images(graph, 256, generator) if images is None else inputs_of(graph, images, self._seed)
        # Convolutions on the CPU run a fifth faster on channels-last images, and every later activation follows.
        inputs = tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs)
        self._inputs = _shuffled(whole_batches(graph, inputs), generator)
        measured = measure_layers(
            graph, self._groups, self._inputs, config.effort,
            data_free=self._data_free, generator=generator, divergence=self._divergence, progress=progress,
        )  # fmt: skip
        clock.lap("measure")
        paths = order_channels(graph, self._groups, measured, damping=config.damping, progress=progress)
        clock.lap("order")
        if config.sensitivity == "fisher":
            paths = with_losses(
                graph, paths, measured,
                damping=config.damping, temperature=config.temperature, work=config.macs_to_spend,
                generator=generator, progress=progress,
            )  # fmt: skip
        clock.lap("price")
        self._found = measured, paths
        self.seconds = clock.seconds

    def _choose(
        self, goal: Goal, shared: tuple[str, Curves], clock: "_Clock", progress: Progress | None
    ) -> tuple[Plan, dict[str, Any]]:
        """Step 4: which channels go, by a hypothesis and its loss curves.

        Beside the plan: facts for its notes. `predicted_loss` is what its groups cost by themselves, in nats, before
        the refit makes some of it good; `shared_by` is which hypothesis was taken.
        """
        graph, cost, config = self.graph, self._cost, self._config
        measured, paths = self._known()
        chosen, curves = shared
        merging, moments = config.refit or LeastSquares(), moments_of(graph, measured)

        def plan_at(asked: Mapping[Quantity, float]) -> Plan:
            widths = solve_all(cost, curves, asked, goal.limits)
            return merged(graph, kept_of(graph, paths, widths), merging, moments)

        plan, timed = plan_for(graph, cost, goal, plan_at, progress)
        clock.lap("budget")
        facts: dict[str, Any] = {"few_rows": few_rows(graph, self._groups, measured), "shared_by": chosen, **timed}
        if config.sensitivity == "fisher":
            facts["predicted_loss"] = self.predicted_loss(plan)
        return plan, facts

    def _shared(
        self, goal: Goal, generator: torch.Generator, clock: "_Clock", progress: Progress | None, **few: int
    ) -> tuple[str, Curves]:
        """Return by which hypothesis a budget is shared among the groups, and its loss curves."""
        config, (measured, paths) = self._config, self._known()
        shares = goal.shares(self._cost)
        if goal.timed:
            # Ways to share are compared at so many MACs as if time went with them.
            shares["macs"] = min(goal.asked.get("keep_latency", 0.5), shares.get("macs", 1.0))
        counted: Quantity = next(iter(shares))
        found = hypotheses(self._cost, paths, counted, sensitivity=config.sensitivity, compare=config.compare)
        chosen = next(iter(found))
        if len(found) > 1:
            chosen = closest(
                self._cost, found, paths, measured, shares, goal.limits, self._quick(),
                work=config.macs_to_spend, generator=generator, progress=progress, **few,
            )  # fmt: skip
            clock.lap("compare")
        return chosen, found[chosen]

    def _quick(self) -> Merging:
        """Return what hands kernels over as fast as may be, to tell plans apart."""
        refit = self._config.refit
        return LeastSquares() if refit is None or self._data_free else replace(refit, work=0.0)

    def predicted_loss(self, plan: Plan) -> float:
        """Return what the cuts of a plan cost by themselves, in nats, before a refit makes some of it good."""
        _, paths = self._known()
        gone = {merge.group: self.graph.by_name[merge.group].width - len(merge.kept) for merge in plan.merges}
        return float(sum(paths[name].loss[count] for name, count in gone.items()))

    def _fresh(self) -> torch.Generator:
        """Return a generator in the state in which measuring has left its own."""
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        return generator

    def _known(self) -> tuple[Measured, Mapping[str, RemovalOrder]]:
        assert self._found is not None  # noqa: S101 (measured before, for the type checker)
        return self._found


def measure(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    ignore: Sequence[str] = (),
    seed: int = 0,
    config: OneShot | None = None,
    divergence: Divergence | None = None,
    progress: Progress | None = None,
) -> Planner:
    """Measure a network once, for plans at any number of budgets.

    Parameters
    ----------
    graph, images, ignore, seed, config, divergence, progress
        As in :func:`clusterprune.oneshot`.

    Returns
    -------
    Planner
        ``measure(graph, images).plan(keep_macs=0.5)`` is ``oneshot(graph, images, keep_macs=0.5)`` to the last bit.

    Raises
    ------
    ArgumentError
        For a bad option, or images that do not fit the traced example.
    BudgetError
        If nothing may be cut.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
    >>> planner = cp.measure(cp.trace(net, torch.zeros(1, 3, 8, 8)), torch.randn(64, 3, 8, 8))
    >>> [planner.plan(keep_macs=share).widths["0"] for share in (0.75, 0.5)]
    [12, 8]
    """
    return measure_for(
        None, graph, images, ignore=ignore, seed=seed, config=config, divergence=divergence, progress=progress
    )


def measure_for(
    goal: Goal | None,
    graph: ChannelGraph,
    images: Images | None,
    *,
    ignore: Sequence[str],
    seed: int,
    config: OneShot | None,
    divergence: Divergence | None,
    progress: Progress | None,
) -> Planner:
    """Measure, having checked first that a budget can be met at all; see :func:`measure`."""
    check_graph(graph)
    check_seed(seed)
    check_progress(progress)
    if config is not None and not isinstance(config, OneShot):
        raise ArgumentError(f"config must be a OneShot, but got config={shown(config)}; write OneShot(damping=1e-3)")
    planner = Planner(graph.freeze(ignore), config or OneShot(), seed, divergence or BY_KIND)
    planner.look(images, progress, goal)
    return planner


class _Clock:
    """Seconds by phase, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Note that a phase is over."""
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._since, 3)
        self._since = now


def _shuffled(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the images in random order: those of a folder often come class by class, and not all are looked at."""
    order = torch.randperm(len(inputs[0]), generator=generator)
    return tuple(tensor[order.to(tensor.device)] for tensor in inputs)
