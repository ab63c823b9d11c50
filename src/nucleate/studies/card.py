"""The card of a pruned model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from nucleate.data import Dataset
from nucleate.pruning.masks import Masks
from nucleate.spec import PruneRunSpec
from nucleate.studies.frontier import Kind


def card_text(
    spec: PruneRunSpec,
    data: Dataset,
    model: nn.Module,
    masks: Masks,
    dense: float,
    after: float,
    macs: tuple[float, float],
    reached: Mapping[Kind, float],
) -> str:
    """What a reader of the pruned model must know, as Markdown; `reached` is what the search of a target measured."""
    how = spec.prune
    rate = f"at learning rate {how.lr:g}" if how.after == "fine-tune" else f"({how.after})"
    trained = f"trained on for {how.epochs} epochs {rate}" if how.epochs else "not trained on"
    layers = "\n".join(f"| {name} | {d:.4f} |" for name, d in masks.densities.items())
    parameters = sum(p.numel() for p in model.parameters())
    better = "lower" if spec.metric == "loss" else spec.better
    held_out = f"{len(data.test_labels):,} held-out points of {data.name} ({better} is better)"
    return f"""# {spec.model.name}, pruned

{masks.kept:,} of {masks.count:,} prunable weights are left ({masks.density:.2%}), of {parameters:,} parameters in all.
Method {how.method}, scope {how.scope}, shape {how.shape}, seed {spec.seed}; {trained}.

| | before | after |
|---|---|---|
| {spec.metric} on {held_out} | {dense:.4f} | {after:.4f} |
| multiply-adds a point, in theory | {macs[0]:,.0f} | {macs[1]:,.0f} |

Zeros in a dense file make it neither smaller nor faster by themselves: `sparse.safetensors` beside this card is the
small file (`nucleate.load_sparse` reads it); `nucleate.shrink` and `nucleate.accelerate` make it faster, as measured.
{_target(spec, reached)}
## Loading without nucleate

```python
from safetensors.torch import load_file

model.load_state_dict(load_file("tensors/weights.safetensors"))
```

## Kept share by layer

| layer | kept |
|---|---|
{layers}
"""


def _target(spec: PruneRunSpec, reached: Mapping[Kind, float]) -> str:
    if not reached:
        return ""
    return f"""
## The target, {spec.target}

Measured of this network in the search, the time by `nucleate.accelerate`, the loss on validation points:

| {spec.batch} points take | times faster than the best dense form | sparse file | loss of {spec.metric} |
|---|---|---|---|
| {1e3 * reached["time"]:.3g} ms | {reached["speedup"]:.2f} | {reached["size"]:,.0f} bytes | {reached["loss"]:.4f} |
"""
