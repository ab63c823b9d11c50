"""The byte-level transformer: causal, sized as stated, drawn as GPT-2."""

from __future__ import annotations

import math

import pytest
import torch

from nucleate.models import build
from nucleate.spec import ModelSpec


def small(seed: int = 0, **fields: int) -> torch.nn.Module:
    spec = ModelSpec(name="transformer", width=64, depth=2, **fields)
    return build(spec, (16,), 256, generator=torch.Generator().manual_seed(seed))


def test_a_position_never_sees_what_follows() -> None:
    net = small().eval()
    tokens = torch.arange(32).view(2, 16)
    changed = tokens.clone()
    changed[:, 9:] = 7
    with torch.no_grad():
        a, b = net(tokens), net(changed)
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert not torch.allclose(a[:, 9:], b[:, 9:])


def test_weights_and_their_scale() -> None:
    net = small()
    blocks = [p for n, p in net.named_parameters() if n.startswith("blocks") and p.ndim == 2]
    assert sum(p.numel() for p in blocks) == 2 * 12 * 64**2
    assert float(net.get_parameter("blocks.0.up.weight").detach().std()) == pytest.approx(0.02, rel=0.03)
    assert float(net.get_parameter("blocks.1.down.weight").detach().std()) == pytest.approx(
        0.02 / math.sqrt(4), rel=0.03
    )
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert torch.equal(net.get_parameter("norm.weight"), torch.ones(64))


def test_the_untrained_net_knows_nothing() -> None:
    tokens = torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(small()(tokens).flatten(0, 1), tokens.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(256), abs=0.15)


@pytest.mark.parametrize(("fields", "words"), [({"batchnorm": True}, "batchnorm"), ({"width": 50}, "multiple of 32")])
def test_refuses(fields: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(ModelSpec(**{"name": "transformer", **fields}), (16,), 256, generator=torch.Generator())
