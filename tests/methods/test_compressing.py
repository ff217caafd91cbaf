"""A smaller network in one call, and what is said before a long one."""

import pytest
import torch
from small_networks import Plain, ready
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.methods.foresight import check_memory, foresee, foresee_bytes

QUICK = cp.OneShot(refit=None, sensitivity="error")


@pytest.fixture(scope="module")
def plain() -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    return ready(Plain())


def test_one_call_takes_images_in_every_form(plain) -> None:
    model, graph, images = plain
    labels = torch.zeros(len(images), dtype=torch.long)
    wanted = cp.apply(model, cp.oneshot(graph, images, keep_macs=0.5, config=QUICK), graph=graph)(images)
    forms = {
        "tensor": images,
        "batch": (images, labels),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=16),
        "list": [(images[:32], labels[:32]), (images[32:], labels[32:])],
        "generator": (images[at : at + 16] for at in range(0, 64, 16)),
        "mappings": [{"image": images[:32]}, {"image": images[32:]}],
    }
    for name, form in forms.items():
        small = cp.compress(model, form, keep_macs=0.5, config=QUICK)
        assert torch.equal(small(images), wanted), name
    shuffled = cp.compress(model, TensorDataset(images, labels), keep_macs=0.5, config=QUICK)
    assert evaluate.macs(shuffled, images[:1]) <= 0.5 * evaluate.macs(model, images[:1])
    with pytest.raises(ArgumentError, match="nothing says what the network reads"):
        cp.compress(model, ["cat.png"], keep_macs=0.5)


def test_what_is_foreseen_grows_with_the_images_and_a_limit_says_how_many_fit(plain) -> None:
    _, graph, _ = plain
    few, many = (foresee_bytes(graph, images, QUICK) for images in (64, 4096))
    assert 0 < few < many
    assert foresee(graph, 64, QUICK).seconds < foresee(graph, 4096, QUICK).seconds
    check_memory(graph, 4096, QUICK, 2 * many / 2**30)
    with pytest.raises(BudgetError, match=r"more than memory_limit=.*; give images=(2048|1024|512|256|128)"):
        check_memory(graph, 4096, QUICK, 0.9 * many / 2**30)
    with pytest.raises(ArgumentError, match="memory_limit must be above 0"):
        check_memory(graph, 64, QUICK, 0)
