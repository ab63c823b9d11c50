"""A model from a local folder of `transformers`: nothing is downloaded, no code of the folder is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForSequenceClassification", "ForImageClassification")
"""Ends of the architectures whose output has logits."""


def is_pretrained(name: str) -> bool:
    """Whether a name is a folder with a `config.json`."""
    return (Path(name).expanduser() / "config.json").is_file()


def from_folder(name: str) -> nn.Module:
    """The folder's model with its weights, in eval mode; called with a tensor, it returns its logits.

    Raises:
        ValueError: without transformers, for a folder without weights it can read as safetensors, or an architecture
            without logits.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{name} is a model of transformers: pip install 'nucleate[transformers]'") from None
    folder = Path(name).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds = [str(k) for k in config.get("architectures") or []]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read {folder / 'config.json'}: {error}") from None
    kind = next((k for k in kinds if k.endswith(HEADS)), None)
    if kind is None or not hasattr(transformers, kind):
        raise ValueError(f"{folder}: its architecture {kinds or 'is not named'} has no logits that this can judge")
    try:
        model: nn.Module = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load the model in {folder}: {str(error).splitlines()[0]}") from None
    model.register_forward_hook(_logits)
    return model.eval()


def _logits(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.logits
