"""Evaluation on held-out points: the sparse way and the network's own forward pass give the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nucleate.compact import native
from nucleate.models.mlp import MLP, LeNet
from nucleate.training.held import HeldOut


def images(share: float, points: int = 70) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(points, 1, 8, 8, generator=draw) * (torch.rand(points, 1, 8, 8, generator=draw) < share)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_logits_are_those_of_the_forward_pass(norm: bool, share: float) -> None:
    net = MLP(64, 5, width=21, depth=2, batchnorm=norm)
    x = images(share)
    net.train()(images(0.5))  # moves the running statistics
    held = HeldOut(x)
    net.eval()
    exact = net.double()(x.double())
    net.float()
    torch.testing.assert_close(held.logits(net).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not native.available(), reason="the sparse kernel is not built")
def test_mostly_black_images_take_the_sparse_way() -> None:
    net = LeNet(64, 5, width=30).eval()
    seen: list[int] = []
    net.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    HeldOut(images(0.2)).logits(net)
    assert seen == [2]
    HeldOut(images(0.9)).logits(net)
    assert seen == [2, 70]


def test_a_network_that_is_no_chain_is_run_as_it_is() -> None:
    class Doubled(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net, x = Doubled(64, 5, width=20, depth=1).eval(), images(0.2)
    torch.testing.assert_close(HeldOut(x).logits(net), net(x))
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 5)).eval()
    torch.testing.assert_close(HeldOut(x).logits(conv), conv(x))
