import pytest
import torch

from clusterprune.models import GoogLeNet, Inception
from clusterprune.models.googlenet import WIDTHS, InceptionWidths, googlenet


def test_size_is_the_published_one(measure):
    size = measure(googlenet)
    assert (size.params, size.macs) == (6_166_250, 1_521_756_160)
    assert size.params == pytest.approx(6.17e6, rel=0.001)
    assert size.macs == pytest.approx(1533.96e6, rel=0.01)
    assert size.macs_with_batch_norm == pytest.approx(1533.96e6, rel=0.002)


def test_branches_are_concatenated_in_order():
    widths = InceptionWidths(one=2, three_reduce=3, three=4, five_reduce=5, five=6, pool=7)
    block = Inception(8, widths).eval()
    x = torch.randn(2, 8, 5, 5)
    y = block(x)
    assert y.shape == (2, widths.total, 5, 5)
    assert torch.equal(y[:, :2], block.branch1x1(x))
    assert torch.equal(y[:, 2:6], block.branch3x3(x))
    assert torch.equal(y[:, 6:12], block.branch5x5(x))
    assert torch.equal(y[:, 12:], block.branch_pool(x))


def test_every_block_reads_what_the_one_before_writes():
    with torch.device("meta"):
        model = GoogLeNet(num_classes=7)
        logits = model(torch.empty(1, 3, 32, 32))
    assert logits.shape == (1, 7)
    totals = [widths.total for widths in WIDTHS.values()]
    assert totals == [
        256, 480, 512, 512, 512, 528, 832, 832, 1024,
    ]  # fmt: skip
    children = [name for name, _ in model.named_children() if name.startswith("inception_")]
    assert children == [f"inception_{name}" for name in WIDTHS]


def test_resolution_halves_before_the_fourth_and_the_fifth_stage():
    with torch.device("meta"):
        model = GoogLeNet().eval()
    sides: dict[str, int] = {}

    def keep(block: Inception, _inputs: object, output: torch.Tensor) -> None:
        sides[names[block]] = output.shape[-1]

    names = {m: name[-2:] for name, m in model.named_children() if isinstance(m, Inception)}
    for block in names:
        block.register_forward_hook(keep)
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert sides == {name: {"3": 32, "4": 16, "5": 8}[name[1]] for name in WIDTHS}
