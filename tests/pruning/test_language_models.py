"""Models of `transformers`, built from their configurations."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from nucleate.pruning.coverage import coverage
from nucleate.pruning.depth import influence, passing_by, removable, without
from nucleate.pruning.prune import prune
from nucleate.pruning.scores import scores

transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")

TINY: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=16, n_head=4, n_positions=16, **TINY))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **TINY,
        )
    )


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **TINY
        )
    )


@pytest.mark.parametrize("build", [gpt2, llama, bert])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "snip"])
def test_language_models_are_covered_block_by_block_with_exact_densities(build: Any, method: str) -> None:
    torch.manual_seed(0)
    model = build()
    ids = torch.randint(3, 64, (4, 8), generator=torch.Generator().manual_seed(0))
    batches = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)]
    covered = coverage(model)
    assert all(row.status != "unsupported" for row in covered.rows)
    inside = [r for r in covered.rows if re.search(r"\.(h|layers|layer)\.\d", r.name) and r.name.endswith(".weight")]
    # Every matrix of every block, and nothing but norms left out there.
    assert {r.why for r in inside if r.status != "prunable"} == {"norm"}
    assert sum(r.status == "prunable" for r in inside) == {"gpt2": 8, "llama": 14, "bert": 12}[build.__name__]
    done = prune(model, method, 0.5, batches=batches, scope="layer")
    assert done.masks.kept == covered.prunable // 2
    heads = prune(model, "magnitude", 0.5, shape="head", scope="layer")
    assert heads.masks.density == 0.5


@pytest.mark.parametrize("method", ["grasp", "hutchinson", "fisher", "synflow"])
def test_second_derivatives_and_float64_pass_through_attention(method: str) -> None:
    torch.manual_seed(0)
    model = gpt2()
    ids = torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    found = scores(model, method, [({"input_ids": ids}, ids)])
    assert len(found) == 8 and all(bool((s != 0).any()) for s in found.values())


def test_wanda_leaves_padding_of_a_language_model_out() -> None:
    torch.manual_seed(0)
    model = gpt2()
    ids = torch.randint(3, 64, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    other = ids.masked_fill(mask == 0, 9)
    a, b = (scores(model, "wanda", [({"input_ids": i, "attention_mask": mask}, None)]) for i in (ids, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_layers_of_a_language_model_can_go() -> None:
    torch.manual_seed(0)
    model = llama().eval()
    ids = torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    batches = [({"input_ids": ids}, ids)]
    assert removable(model, batches) == ["model.layers.0", "model.layers.1"]
    low = influence(model, batches, ["model.layers.0", "model.layers.1"])
    assert all(0 < value < 2 for value in low.values())
    small = without(model, ["model.layers.0"], batches)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters()) == 2336
    with passing_by(model, ["model.layers.0"]):
        want = model(input_ids=ids).logits
    torch.testing.assert_close(small(input_ids=ids).logits, want, rtol=0, atol=0)
