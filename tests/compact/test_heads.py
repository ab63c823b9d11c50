"""Attention heads and the blocks of transformers, made smaller."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from nucleate.compact.fold import masked
from nucleate.compact.shrink import shrink
from nucleate.pruning.prune import prune


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def language_model(name: str) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
        if name == "gpt2":
            config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=32, **ids)
            net: Any = transformers.GPT2LMHeadModel(config).eval()
        else:
            config = transformers.LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                **ids,
            )
            net = transformers.LlamaForCausalLM(config).eval()
    return net


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_blocks_of_transformers(name: str) -> None:
    net = language_model(name)
    g = Generator().manual_seed(3)
    axis = 1 if name == "gpt2" else 0
    masks = {k: torch.ones_like(p) for k, p in net.named_parameters() if k.endswith(("c_fc.weight", "up_proj.weight"))}
    assert len(masks) == 2
    for mask in masks.values():
        mask.index_fill_(axis, torch.arange(1, mask.shape[axis], 2), 0)
    tokens = torch.randint(50, (2, 9), generator=g)
    small: Any = shrink(net, masks, {"input_ids": tokens})
    other = torch.randint(50, (3, 12), generator=g)
    with torch.no_grad():
        exact: Any = masked(net, masks)
        assert torch.allclose(small(input_ids=other).logits, exact(input_ids=other).logits, atol=1e-5)
    assert count(small) < 0.9 * count(net)


def dead_heads(net: nn.Module) -> dict[str, Tensor]:
    """Masks of half of the heads by magnitude, as `nu.prune` finds them."""
    found = prune(copy.deepcopy(net), "magnitude", 0.5, scope="layer", shape="head")
    return {k: m for k, m in found.masks.items() if m.dim() > 1}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("other", [{}, {"kdim": 6, "vdim": 10}, {"bias": False}])
def test_heads_of_multihead_attention(other: dict[str, Any], batch_first: bool) -> None:
    g = Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.MultiheadAttention(16, 4, batch_first=batch_first, **other).eval()
        if net.in_proj_bias is not None:
            nn.init.normal_(net.in_proj_bias)
    with torch.no_grad():
        # Nobody reads head 1; the values of head 2 are its bias.
        net.out_proj.weight[:, 4:8] = 0
        v = net.v_proj_weight if other.get("vdim") else net.in_proj_weight[32:]
        v[8:12] = 0
        x = [torch.randn(3, 5, n, generator=g) for n in (16, net.kdim, net.vdim)]
        small: Any = shrink(net, None, tuple(x))
        assert small.num_heads == 2 and count(small) < 0.6 * count(net)
        own = torch.rand(5, 5, generator=g) < 0.4
        own.fill_diagonal_(False)
        length, batch = (5, 3) if batch_first else (3, 5)
        own = own[:length, :length]
        padding = torch.zeros(batch, length, dtype=torch.bool)
        padding[0, -1] = True
        each = torch.randn(batch * 4, length, length, generator=g)
        for options in ({}, {"attn_mask": own}, {"attn_mask": each}, {"key_padding_mask": padding}):
            expected = net(*x, need_weights=False, **options)[0]
            known = ~expected.isnan()
            assert torch.allclose(small(*x, **options)[0][known], expected[known], atol=1e-5)
        alone = [t[0] for t in x]
        assert torch.allclose(small(*alone)[0], net(*alone)[0], atol=1e-5)


def test_heads_of_an_encoder_layer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False
        ).eval()
    masks = dead_heads(net)
    assert masks
    x = torch.randn(2, 5, 16, generator=Generator().manual_seed(0))
    small: Any = shrink(net, masks, x)
    assert sum(layer.self_attn.num_heads for layer in small.layers) < 8
    assert count(small) < 0.9 * count(net)
    with torch.no_grad():
        assert torch.allclose(small(x), masked(net, masks)(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_fewer_heads_takes_a_padding_mask() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    assert net.use_nested_tensor
    masks = dead_heads(net)
    x, padding = torch.randn(2, 5, 16, generator=Generator().manual_seed(0)), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        expected = masked(net, masks)(x, src_key_padding_mask=padding)
        for example in (x, {"src": x, "src_key_padding_mask": padding}):
            got = shrink(net, masks, example)(x, src_key_padding_mask=padding)
            assert torch.allclose(got[~padding], expected[~padding], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_heads_of_transformers(name: str) -> None:
    net = language_model(name)
    masks = dead_heads(net)
    g = Generator().manual_seed(3)
    with torch.no_grad():
        for key, p in net.named_parameters():
            if key.endswith("c_attn.bias"):
                p.normal_(generator=g)
    tokens = torch.randint(50, (2, 9), generator=g)
    small: Any = shrink(net, masks, {"input_ids": tokens})
    other = torch.randint(50, (3, 12), generator=g)
    with torch.no_grad():
        exact: Any = masked(net, masks)
        assert torch.allclose(small(input_ids=other).logits, exact(input_ids=other).logits, atol=1e-5)
    own = [m for m in small.modules() if type(m).__name__.endswith("Attention")]
    cut = {m.c_proj.nx if name == "gpt2" else m.o_proj.in_features for m in own}
    assert min(cut) < 32 and count(small) < count(net)
    made = [m.generate(tokens, max_new_tokens=4, do_sample=False) for m in (small, exact)]
    assert torch.equal(*made)
