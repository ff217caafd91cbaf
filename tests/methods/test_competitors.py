"""Methods that the papers compare with: what each does as its own paper has it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from digits_task import FAST, make_task
from sklearn.linear_model import Lasso

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.errors import ArgumentError
from clusterprune.methods import METHODS, Work, find
from clusterprune.methods.lasso import LassoPath, entries
from clusterprune.methods.prune_by import scores
from clusterprune.studies.comparison import Contender


def test_scores_are_where_lasso_begins_to_read_a_channel() -> None:
    x = np.random.default_rng(0).normal(size=(400, 9)) * np.linspace(0.2, 1.5, 9)
    x[:, 3] += x[:, 4]
    gram = x.T @ x / len(x)
    score = entries(gram)
    for penalty in np.quantile(score, [0.15, 0.4, 0.6, 0.9]) * 1.001:
        fitted = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, x.sum(1))
        assert ((fitted.coef_ != 0) == (score > penalty)).all()


def test_lasso_leaves_out_what_the_layer_behind_does_not_read() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3)).eval()
    with torch.no_grad():
        net[2].weight[:, [1, 4]] *= 1e-3
    images = torch.randn(32, 3, 8, 8)
    score = scores(cp.trace(net, images[:1]), LassoPath(), images=images)["0"]
    assert set(score.argsort()[:2].tolist()) == {1, 4}
    with pytest.raises(ArgumentError, match="images=None; give images"):
        scores(cp.trace(net, images[:1]), LassoPath())


def test_single_weights_are_zero_and_stay_so_while_the_network_stays_as_large(tmp_path: Path) -> None:
    network, digits = make_task()
    made = find("wlp").read({"keep_macs": 0.5}).run(network, digits, Work(tmp_path, FAST.changed(epochs=1), seed=1))
    assert made.cut is not None
    assert evaluate.macs(made.model, network.example) == evaluate.macs(network.model, network.example)
    free = made.record["if_zeros_were_free"]
    assert free["macs"] == pytest.approx(0.5 * evaluate.macs(network.model, network.example), rel=0.01)
    zeros = {name: tensor == 0 for name, tensor in made.cut.state_dict().items() if tensor.ndim > 1}
    assert evaluate.params(network.model) - sum(int(where.sum()) for where in zeros.values()) == free["params"]
    after = made.model.state_dict()
    assert after.keys() == network.model.state_dict().keys()
    assert all(torch.equal(after[name] == 0, where) for name, where in zeros.items())
    assert any(not torch.equal(after[name], made.cut.state_dict()[name]) for name in zeros)


def test_what_makes_nothing_smaller_competes_and_is_not_offered() -> None:
    assert "wlp" not in METHODS
    assert Contender.read("wlp").method == "wlp"
    with pytest.raises(ArgumentError, match="keep_macs is missing"):
        find("wlp").read({})
