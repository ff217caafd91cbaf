"""What a person sees of the objects: a line at a prompt, a table in a notebook, a summary before anything is cut."""

from collections import OrderedDict
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import Phase, given, settings
from networks import Network, Recipe, random_plan, recipes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.clustering import Clusters
from clusterprune.errors import PlanError
from clusterprune.graph.channels import FrozenLayers
from clusterprune.methods import Outcome
from clusterprune.methods.acp_search import Found
from clusterprune.methods.icp_steps import StepRecord
from clusterprune.models import build
from clusterprune.search.trials import Evaluation, SearchResult
from clusterprune.train.result import TrainResult

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet() -> tuple[cp.ChannelGraph, cp.Plan]:
    graph = cp.trace(build("resnet20").eval(), IMAGE)
    return graph, cp.prune_by(graph, "l1", keep_macs=0.5, round_to=1)


def results(graph: cp.ChannelGraph, plan: cp.Plan) -> dict[str, Any]:
    """Return one of everything that a call gives back, after long work."""
    model = graph.model
    epochs = [{"epoch": epoch, "loss": 0.5, "validation_accuracy": 91.25} for epoch in range(1, 201)]
    structures = tuple(Evaluation(slot, plan.widths, (90.0,)) for slot in range(200))
    steps = [StepRecord(step, 200_000, 30_000_000, 80.5, 90.5, 10, 12.5) for step in range(20)]
    record = {"steps": [vars(step) for step in steps], "accuracy": 90.5, "seconds": 12.5, "fitness": None}
    return {
        "graph": graph,
        "group": graph.groups[0],
        "use": graph.groups[0].consumers[0],
        "plan": plan,
        "merge": plan.merges[0],
        "outcome": Outcome(model, None, plan, record),
        "step": steps[0],
        "acp": Found(plan, plan.widths, plan.widths, 90.0, structures, "acp", ""),
        "search": SearchResult("acp", "", plan.widths, 90.0, structures[:1], structures),
        "training": TrainResult(epochs, 200, 12.5),
        "clusters": Clusters(np.arange(4000) - 1),
    }


def test_everything_is_a_line_at_a_prompt(resnet: tuple[cp.ChannelGraph, cp.Plan]) -> None:
    shown = {name: repr(thing) for name, thing in results(*resnet).items()}
    assert {name: text for name, text in shown.items() if len(text) > 320 or "\n" in text} == {}
    for name, expected in {
        "graph": "<ChannelGraph of ResNet: 13 groups, 12 may be cut (400 channels)>",
        "group": "<Group conv1: 16 channels, made by conv1 and 9 more, read by layer1.0.conv1 and 9 more>",
        "use": "<ParameterSlice of layer1.0.conv1.weight: dimension 1 (columns) of 16 channels>",
        "clusters": "<Clusters: 3999 of 4,000 channels, 1 of them noise>",
    }.items():
        assert shown[name] == expected
    plan = resnet[1]
    assert shown["plan"].startswith(
        f"<Plan by criterion for 12 groups, keep_macs=0.5: keeps {plan.widths['conv1']} of conv1, "
    )
    assert shown["outcome"].startswith("<Outcome: ResNet with 269.72 k parameters, accuracy=90.5, seconds=12.5, plan=<")
    assert repr(cp.Plan(())) == "<Plan for 0 groups: keeps everything>"


class Tags(HTMLParser):
    """Reads a page: its text, and which tags are open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.styles: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td")
        assert {name for name, _ in attrs} <= {"style"}
        self.styles |= {str(value) for _, value in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


EVIL = "<script>&'\"\x1b[31m"


def test_notebooks_show_tables_in_the_colours_of_the_page_and_names_as_text() -> None:
    layers = {EVIL: nn.Conv2d(3, 8, 3), "act": nn.ReLU(), "<b>": nn.Conv2d(8, 4, 3)}
    model = type("Net<i>", (nn.Sequential,), {})(OrderedDict(layers))
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    plan = cp.Plan.of(graph, (cp.Merge(EVIL, [0, 3]),), method="<u>", keep_macs=0.25, **{"<s>": "<br>"})
    outcome = Outcome(
        model, None, plan, {"<hr>": "<p>", "steps": [{"<a>": 1, "macs": 2}, {"macs": 3}], "odd": [1, "x"]}
    )
    for thing, expected in (
        (graph, ["Net<i>: 2 groups", "<b>", "frozen: it reaches the network's output"]),
        (plan, ["Plan by <u> for 1 group, keep_macs=0.25", "<s>=<br>"]),
        (plan.summary(graph), ["Plan for Net<i> by <u>", "25.0%", "it reaches the network's output"]),
        (outcome, ["Outcome: Net<i> with", "<hr>", "<p>", "<a>", "Plan by <u>"]),
    ):
        page = Tags(thing._repr_html_())
        assert page.open == []
        assert not [style for style in page.styles if "color" in style or "background" in style or "url" in style]
        text = "\n".join(page.text)
        for part in expected:
            assert part in text
    assert "\x1b" not in repr(plan) + repr(outcome) + plan._repr_html_()


def test_a_summary_says_what_a_plan_would_make_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    notes = {"method": "hand", "keep_macs": 0.5, "predicted_loss": 0.0125, "config": {"damping": 1}, "seed": 3}
    summary = cp.Plan.of(graph, (cp.Merge("0", [0, 3, 5, 6]),), **notes).summary(graph)
    assert summary.widths == {"0": (8, 4), "2": (6, 6)}
    assert summary.macs.before == evaluate.macs(model, graph.args)
    assert summary.params.kept == pytest.approx(summary.params.after / evaluate.params(model))
    assert (summary.method, summary.budget, summary.predicted_loss) == ("hand", {"keep_macs": 0.5}, 0.0125)
    assert summary.frozen == (FrozenLayers(("4",), 4, 4, "it reaches the network's output"),)
    assert str(summary) == repr(summary)
    assert (
        str(summary)
        == """\
Plan for Sequential by hand: keep_macs=0.5, seed=3

                 before   after   kept
MACs            15.55 k  8.21 k  52.8%
parameters          882     554  62.8%
predicted loss           0.0125

group  before  after  kept
0           8      4   50%
2           6      6  100%

frozen:
  4  4 channels  it reaches the network's output"""
    )
    assert "predicted" not in str(cp.Plan.of(graph, ()).summary(graph))


def test_a_summary_of_another_network_is_refused(resnet: tuple[cp.ChannelGraph, cp.Plan]) -> None:
    graph = cp.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), IMAGE)
    with pytest.raises(PlanError, match="another model"):
        resnet[1].summary(graph)


@pytest.mark.filterwarnings("ignore::clusterprune.errors.UntrainableWarning")
@settings(max_examples=examples(8), deadline=None, derandomize=True, phases=[Phase.generate])
@given(recipes())
def test_a_summary_counts_what_the_cut_network_has(recipe: Recipe) -> None:
    network = Network(recipe).eval()
    inputs = network.inputs(1)
    graph = cp.trace(network, inputs)
    plan = random_plan(graph, recipe.seed, offset=True, every_group=False)
    small = cp.apply(network, plan, graph=graph)
    summary = plan.summary(graph)
    with FlopCounterMode(display=False) as counter:
        small(*inputs)
    assert summary.macs == (evaluate.macs(network, inputs), counter.get_total_flops() // 2)
    # A network that is rebuilt from its graph has no parameters that nothing touches; the user's own class has them.
    own = dict(network.named_parameters())
    dead = sum(own[path].numel() for path in graph.unused) if isinstance(small, torch.fx.GraphModule) else 0
    assert summary.params == (evaluate.params(network), evaluate.params(small) + dead)
    assert {name: width.after for name, width in summary.widths.items()} == {
        group.name: plan.widths.get(group.name, group.width) for group in graph.prunable
    }
