"""Physically remove attention heads that give nothing: nobody reads them, or their values are constant.

With softmax(Q K^T) V a head whose values are one constant gives that constant, whatever it attends to: it goes into the
bias of the output map. With grouped queries (GQA) a key and value head goes with all queries that read it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from nucleate.compact.layers import is_hooked


def without_dead_heads(model: nn.Module) -> nn.Module:
    """The model, its attention modules cut in place to the heads that give something; one stays in each.

    `nn.MultiheadAttention`, which ties its heads to its width, becomes a `FewerHeads`; the attention of GPT-2 and of
    Llama (q_proj, k_proj, v_proj, o_proj) from `transformers` keeps its class.
    """
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    for name, module in list(model.named_modules()):
        plain = not any(is_hooked(m) or is_parametrized(m) for m in module.modules())
        if not plain or any(owners[id(p)] > 1 for p in module.parameters()):
            continue
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            fewer = _fewer(module)
            if fewer is not None and not name:
                return fewer
            if fewer is not None:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, fewer)
        elif _is_gpt2(module):
            _cut_gpt2(module)
        elif _is_llama(module):
            _cut_llama(module)
    return model


def leave_nested_tensors(model: nn.Module) -> None:
    """Encoders whose heads will go take torch's other route with a padding mask: nested tensors read their weights.

    It gives the same, but for padded positions, where nested tensors leave zeros.
    """
    for encoder in (m for m in model.modules() if isinstance(m, nn.TransformerEncoder)):
        attentions = (m for m in encoder.modules() if type(m) is nn.MultiheadAttention)
        if any(_fewer(m) is not None for m in attentions):
            encoder.use_nested_tensor = False


class FewerHeads(nn.Module):
    """`nn.MultiheadAttention` with fewer heads than its width has room for; attention weights are not returned.

    softmax(Q K^T / sqrt(head_dim) + mask) V for each head, then the output map.

    Args:
        attention: what it was cut from.
        heads: (heads,) bool, those that stay.

    >>> attention = nn.MultiheadAttention(8, 4, batch_first=True).eval()
    >>> x = torch.randn(2, 3, 8)
    >>> same = FewerHeads(attention, torch.ones(4, dtype=torch.bool))
    >>> bool(torch.allclose(same(x, x, x)[0], attention(x, x, x)[0], atol=1e-6))
    True
    """

    def __init__(self, attention: nn.MultiheadAttention, heads: Tensor) -> None:
        super().__init__()
        self.batch_first, self.head_dim, self.dropout = attention.batch_first, attention.head_dim, attention.dropout
        self.num_heads, self.embed_dim = int(heads.sum()), attention.embed_dim
        self.total, self.kept = attention.num_heads, heads.nonzero()[:, 0].tolist()
        # What torch's encoder layers ask before they take a route around this module.
        self.in_proj_bias, self._qkv_same_embed_dim = None, False
        rows = heads.repeat_interleave(attention.head_dim)
        biases: Any = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight[rows], None if bias is None else bias[rows])
            for weight, bias in zip(_projections(attention), biases, strict=True)
        )
        self.out_proj = _linear(attention.out_proj.weight[:, rows], cast(Tensor | None, attention.out_proj.bias))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """(output, None) for the arguments of `nn.MultiheadAttention`."""
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            project(t).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for project, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if single:
            return out.squeeze(0), None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, (N, heads, L, S) or what stretches to it."""
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, q)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.total))[:, self.kept]
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill_(mask, -torch.inf)


def _live(v: Tensor, v_bias: Tensor | None, o: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which key and value heads give something that varies, and what the others add to the output.

    Args:
        v: weights of the values, (kv heads * size, inputs).
        v_bias: (kv heads * size,) or none.
        o: weights of the output map, (outputs, query heads * size).
        size: of a head.
    """
    values = v.view(-1, size, v.shape[1])
    queries = o.view(len(o), len(values), -1, size)
    live = (values != 0).any(2).any(1) & (queries != 0).any(3).any(2).any(0)
    if not live.any():
        live[0] = True
    constant = torch.zeros(len(o), dtype=torch.float64, device=o.device)
    if v_bias is not None:
        fixed = torch.where(live[:, None], 0, v_bias.view(-1, size)).double()
        constant = torch.einsum("okqs,ks->o", queries.double(), fixed)
    return live, constant


def _projections(module: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    packed = cast(Tensor | None, module.in_proj_weight)
    if packed is not None:
        return packed.chunk(3)
    return tuple(cast(Tensor, getattr(module, f"{part}_proj_weight")) for part in "qkv")


def _fewer(module: nn.MultiheadAttention) -> FewerHeads | None:
    v_bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[2]
    live, constant = _live(_projections(module)[2], v_bias, module.out_proj.weight, module.head_dim)
    if live.all():
        return None
    out = FewerHeads(module, live)
    _add(out.out_proj, constant)
    return out.train(module.training)


def _is_gpt2(module: nn.Module) -> bool:
    return type(module).__name__ == "GPT2Attention" and not getattr(module, "is_cross_attention", True)


def _cut_gpt2(module: Any) -> None:
    size, width = module.head_dim, module.split_size
    attn, proj = module.c_attn, module.c_proj
    v_bias = attn.bias[2 * width :]
    live, constant = _live(attn.weight[:, 2 * width :].T.contiguous(), v_bias, proj.weight.T.contiguous(), size)
    if live.all():
        return
    rows = live.repeat_interleave(size)
    _add(proj, constant)
    attn.weight = _like(attn.weight, attn.weight[:, rows.repeat(3)])
    attn.bias = _like(attn.bias, attn.bias[rows.repeat(3)])
    proj.weight = _like(proj.weight, proj.weight[rows])
    module.num_heads = int(live.sum())
    module.split_size = proj.nx = module.num_heads * size
    attn.nf = 3 * module.split_size


def _is_llama(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    own = {"q_proj", "k_proj", "v_proj", "o_proj"}
    plain = all(type(parts.get(name)) is nn.Linear for name in own)
    # Anything else with weights, a normalisation of the queries say, may count on their number.
    alone = all(name in own or next(part.parameters(), None) is None for name, part in parts.items())
    return plain and alone and type(module).__name__.endswith("Attention") and hasattr(module, "head_dim")


def _cut_llama(module: Any) -> None:
    size = module.head_dim
    live, constant = _live(module.v_proj.weight, module.v_proj.bias, module.o_proj.weight, size)
    if live.all():
        return
    queries = module.q_proj.out_features // module.k_proj.out_features
    _add(module.o_proj, constant)
    for name, each in (("q_proj", size * queries), ("k_proj", size), ("v_proj", size)):
        linear, rows = getattr(module, name), live.repeat_interleave(each)
        linear.weight = _like(linear.weight, linear.weight[rows])
        if linear.bias is not None:
            linear.bias = _like(linear.bias, linear.bias[rows])
        linear.out_features = int(rows.sum())
    rows = live.repeat_interleave(size * queries)
    module.o_proj.weight = _like(module.o_proj.weight, module.o_proj.weight[:, rows])
    module.o_proj.in_features = int(rows.sum())
    for name, count in (("num_heads", int(live.sum()) * queries), ("num_key_value_heads", int(live.sum()))):
        if hasattr(module, name):
            setattr(module, name, count)


def _add(layer: Any, shift: Tensor) -> None:
    """Add to a bias, which is made where there is none."""
    if not bool(shift.any()):
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(shift, dtype=layer.weight.dtype))
    layer.bias.data += shift.to(layer.bias.dtype)


def _like(old: nn.Parameter, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.detach().clone(), requires_grad=old.requires_grad)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        out.weight.copy_(weight)
        if bias is not None:
            out.bias.copy_(bias)
    return out
