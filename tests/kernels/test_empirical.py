"""Empirical kernels against Jacobians by hand, masked, batch-normalised and cut in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nucleate.kernels import empirical
from nucleate.kernels.empirical import Linearised, empirical_ntk, ntk_product
from nucleate.models import build
from nucleate.spec import ModelSpec


def net_and_points(name: str = "mlp", *, batchnorm: bool = False) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(0)
    spec = ModelSpec(name=name, width=4, depth=2, batchnorm=batchnorm)
    net = build(spec, (1, 8, 8), 3, generator=generator).double()
    return net, torch.rand(5, 1, 8, 8, generator=generator, dtype=torch.float64)


def by_hand(net: nn.Module, x: Tensor) -> Tensor:
    """(n, C, P) gradients, one backward pass for each point and output."""
    rows = []
    for point in x:
        for value in net(point[None])[0]:
            grads = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize(("name", "batchnorm"), [("mlp", False), ("mlp", True), ("convnet", True), ("resnet", True)])
def test_all_forms_are_products_of_gradients(name: str, batchnorm: bool) -> None:
    net, x = net_and_points(name, batchnorm=batchnorm)
    net.train()
    net(x)
    full = empirical_ntk(net, x, output="full")
    assert net.training, "the mode is put back"
    net.eval()
    gradients = by_hand(net, x)
    torch.testing.assert_close(full, gradients @ gradients.T)
    blocks = full.reshape(5, 3, 5, 3)
    torch.testing.assert_close(empirical_ntk(net, x), blocks.diagonal(dim1=1, dim2=3).mean(-1))
    torch.testing.assert_close(empirical_ntk(net, x, output=1), blocks[:, 1, :, 1])
    torch.testing.assert_close(empirical_ntk(net, x[:2], x[1:], output="full"), full[:6, 3:])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = net_and_points()
    whole = [empirical_ntk(net, x, output=o) for o in ("full", "trace", 0)]
    across = empirical_ntk(net, x, x[:3], output="full")
    # Two points a block.
    monkeypatch.setattr(empirical, "BLOCK", 2 * (3 * (4 + 4 + 3) + 64 + 4 + 4) + 100)
    for kernel, output in zip(whole, ("full", "trace", 0), strict=True):
        torch.testing.assert_close(empirical_ntk(net, x, output=output), kernel)
    torch.testing.assert_close(empirical_ntk(net, x, x[:3], output="full"), across)


def test_a_mask_is_the_network_without_those_weights() -> None:
    net, x = net_and_points()
    weight = dict(net.named_parameters())["hidden.0.linear.weight"]
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    before = weight.detach().clone()
    masked = empirical_ntk(net, x, masks={"hidden.0.linear.weight": mask.to(torch.uint8)}, output="full")
    assert torch.equal(weight, before), "the weights are left alone"
    weight.data.mul_(mask)
    gradients = by_hand(net, x)
    names = [k for k, p in net.named_parameters() for _ in range(p.numel())]
    kept = torch.ones(len(names), dtype=torch.bool)
    kept[[i for i, k in enumerate(names) if k == "hidden.0.linear.weight"]] = mask.flatten()
    torch.testing.assert_close(masked, gradients[:, kept] @ gradients[:, kept].T)


def test_products_need_no_jacobian() -> None:
    net, x = net_and_points("convnet")
    v = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = empirical_ntk(net, x, x[:3], output="full") @ v.flatten()
    torch.testing.assert_close(ntk_product(net, x, x[:3], v).flatten(), wanted)


def test_the_linearised_network_is_the_tangent() -> None:
    net, x = net_and_points()
    linear = Linearised(net)
    assert not set(map(id, net.parameters())) & set(map(id, linear.parameters()))
    torch.testing.assert_close(linear(x), net(x))
    gradients = by_hand(net, x)
    (own,) = [torch.cat([g.flatten() for g in torch.autograd.grad(linear(x)[4, 2], list(linear.parameters()))])]
    torch.testing.assert_close(own, gradients[14])
    for p in linear.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(3))
    moved = torch.cat([p.detach().flatten() for p in linear.parameters()])
    torch.testing.assert_close(linear(x).flatten(), net(x).flatten() + gradients @ moved)


def test_frozen_shared_and_repeated_layers() -> None:
    """What does not factor goes through Jacobians; what is frozen does not count."""

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.tied = nn.Linear(4, 4, bias=False)
            self.tied.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.tied(self.b(self.a(self.a(x).relu()).relu()).relu()))
            return out

    torch.manual_seed(0)
    net = Repeated().double()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = by_hand(net, x)
    torch.testing.assert_close(empirical_ntk(net, x, output="full"), gradients @ gradients.T)
    net.c.weight.requires_grad_(False)
    names = [k for k, p in net.named_parameters() for _ in range(p.numel())]
    kept = [i for i, k in enumerate(names) if k != "c.weight"]
    torch.testing.assert_close(empirical_ntk(net, x, output="full"), gradients[:, kept] @ gradients[:, kept].T)


def test_wrong_arguments_are_refused() -> None:
    net, x = net_and_points()
    with pytest.raises(ValueError, match="x must be points"):
        empirical_ntk(net, torch.ones(5))
    with pytest.raises(ValueError, match="x2 holds NaN or infinity"):
        empirical_ntk(net, x, x / 0)
    with pytest.raises(ValueError, match="trace, full or an index below 3, not 'mean'"):
        empirical_ntk(net, x, output="mean")
    with pytest.raises(ValueError, match="fits no parameter"):
        empirical_ntk(net, x, masks={"hidden.0.linear.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        empirical_ntk(nn.Flatten(), x)
