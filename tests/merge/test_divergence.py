import pytest
import torch
from torch.nn import functional

from clusterprune.merge.divergence import divergence, score


def test_logits_diverge_by_kullback_and_leibler():
    torch.manual_seed(0)
    wanted, got = torch.randn(5, 7), torch.randn(5, 7)
    expected = functional.kl_div(got.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert torch.allclose(divergence([wanted], [got]).float(), expected, atol=1e-5)
    assert not divergence([wanted], [wanted + 3.0]).abs().max() > 1e-6  # a softmax does not see a constant


def test_channels_of_a_map_count_by_their_own_scale():
    torch.manual_seed(0)
    wanted = torch.randn(64, 2, 5, 5) * torch.tensor([1.0, 100.0])[:, None, None]
    off = torch.tensor([0.1, 10.0])[:, None, None]
    by_channel = [divergence([wanted], [wanted + off * chosen]).mean() for chosen in _one_at_a_time(off)]
    assert by_channel[0] == pytest.approx(float(by_channel[1]), rel=0.1)


def _one_at_a_time(off: torch.Tensor) -> list[torch.Tensor]:
    return [torch.eye(2)[i][:, None, None] for i in range(len(off))]


def test_outputs_count_alike_however_large_they_are():
    torch.manual_seed(0)
    small, large = torch.randn(32, 1, 2, 2), torch.randn(32, 1, 40, 40)
    first = divergence([small, large], [small + 0.5, large]).mean()
    second = divergence([small, large], [small, large + 0.5]).mean()
    assert float(first) == pytest.approx(float(second), rel=0.2)


def test_what_is_not_finite_is_infinitely_far():
    wanted = torch.randn(3, 4)
    got = wanted.clone()
    got[1, 2] = torch.nan
    assert divergence([wanted], [got]).isinf().tolist() == [False, True, False]


def test_scores_of_logits_have_the_divergence_as_their_second_moment():
    """Half E⟨gradient of the score, δ⟩² is the divergence of a small change δ."""
    torch.manual_seed(0)
    one = torch.randn(1, 5)
    outputs = one.expand(4000, -1).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score([outputs], 1.0, torch.Generator().manual_seed(0)), [outputs])
    for _ in range(3):
        change = 0.01 * torch.randn(1, 5)
        predicted = 0.5 * (gradient * change).sum(1).square().mean()
        assert float(predicted) == pytest.approx(float(divergence([one], [one + change])[0]), rel=0.15)


def test_scores_of_maps_have_the_divergence_as_their_second_moment():
    """Channels whose scales differ a hundredfold: what counts is the change in their deviations."""
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 100.0, 10.0])[:, None, None]
    maps = (torch.randn(4000, 3, 2, 2) * scale).requires_grad_(True)
    (gradient,) = torch.autograd.grad(score([maps], 1.0, torch.Generator().manual_seed(0)), [maps])
    for _ in range(3):
        change = 0.01 * torch.randn(1, 3, 2, 2) * scale
        predicted = 0.5 * (gradient * change).flatten(1).sum(1).square().mean()
        actual = divergence([maps.detach()], [maps.detach() + change]).mean()
        assert float(predicted) == pytest.approx(float(actual), rel=0.15)
