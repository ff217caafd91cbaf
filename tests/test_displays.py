"""What a person sees of the objects: a line at a prompt, a table in a notebook."""

from collections import OrderedDict
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune.clustering import Clusters
from clusterprune.methods.acp import ACPResult
from clusterprune.methods.cp import CPResult
from clusterprune.methods.icp import ICPResult, ICPStep
from clusterprune.methods.pipeline import Outcome
from clusterprune.models import build
from clusterprune.search.trials import Evaluation, SearchResult
from clusterprune.train.result import TrainResult

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet() -> tuple[cp.ChannelGraph, cp.Plan]:
    graph = cp.trace(build("resnet20").eval(), IMAGE)
    return graph, cp.prune_by(graph, "l1", keep_macs=0.5)


def results(graph: cp.ChannelGraph, plan: cp.Plan) -> dict[str, Any]:
    """Return one of everything that a call gives back, after long work."""
    model = graph.model
    epochs = [{"epoch": epoch, "loss": 0.5, "validation_accuracy": 91.25} for epoch in range(1, 201)]
    structures = tuple(Evaluation(slot, plan.widths, (90.0,)) for slot in range(200))
    steps = [ICPStep(step, 200_000, 30_000_000, 80.5, 90.5, 10, 12.5) for step in range(20)]
    record = {"steps": [vars(step) for step in steps], "accuracy": 90.5, "seconds": 12.5, "fitness": None}
    return {
        "graph": graph,
        "group": graph.groups[0],
        "use": graph.groups[0].consumers[0],
        "plan": plan,
        "merge": plan.merges[0],
        "outcome": Outcome(model, None, plan, record),
        "icp": ICPResult(model, tuple(steps)),
        "acp": ACPResult(plan, plan.widths, plan.widths, 90.0, structures, "acp", ""),
        "cp": CPResult(model, plan, model, epochs),
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
        "use": "<Use of layer1.0.conv1.weight: dimension 1 (columns) of 16 channels>",
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
        (outcome, ["Outcome: Net<i> with", "<hr>", "<p>", "<a>", "Plan by <u>"]),
    ):
        page = Tags(thing._repr_html_())
        assert page.open == []
        assert not [style for style in page.styles if "color" in style or "background" in style or "url" in style]
        text = "\n".join(page.text)
        for part in expected:
            assert part in text
    assert "\x1b" not in repr(plan) + repr(outcome) + plan._repr_html_()
