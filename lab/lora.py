"""LoRA (arXiv 2106.09685): leave each matrix W alone and train a change of low rank, W + (alpha / r) B A.

    python asu.py --run=DIR_OR_HUB_ID --lora=16

Only A and B have gradients and optimizer state, which is most of what training takes. B starts at 0, so that the
model starts as it was. What is saved is the merged model, an ordinary one, and beside it the change alone as PEFT
reads it: RUN/adapter.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

from common import UserError

SCALE = 2.0             # alpha / r


class LoRALinear(nn.Module):
    """x -> W x + b + SCALE B A x, with W and b frozen. A (r, in), B (out, r)."""

    def __init__(self, linear, r):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Parameter(linear.weight.new_empty(r, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x):
        return self.linear(x) + SCALE * F.linear(F.linear(x, self.lora_A), self.lora_B)


def add_lora(model, r, seed=0):
    """Freeze the model and give every matrix of its layers (attention and feed-forward) a change of rank r. In place.

    Raises UserError for an r that is no lower than the smallest of those matrices' sides."""
    smallest = min(min(m.weight.shape) for m in model.layers.modules() if isinstance(m, nn.Linear))
    if r >= smallest:
        raise UserError(f"--lora={r} is no low rank for this model, whose smallest matrix has {smallest} rows or "
                        "columns")
    model.requires_grad_(False)
    torch.manual_seed(seed)
    for layer in model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                setattr(block, name, LoRALinear(linear, r))


def changes(model):
    """{path of a matrix in the model: its LoRALinear}; empty for a model without."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@torch.no_grad()
def merge_lora(model):
    """W <- W + SCALE B A, worked out in float32, and plain matrices again. In place. -> share of the change lost to
    rounding

    In bfloat16 a change much smaller than its weight is lost; the adapter keeps it."""
    lost = all = 0.0
    for name, m in changes(model).items():
        W, change = m.linear.weight, SCALE * m.lora_B.float() @ m.lora_A.float()
        exact = W.float() + change
        W.copy_(exact)
        lost, all = lost + (W.float() - exact).square().sum().item(), all + change.square().sum().item()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, m.linear)
    model.requires_grad_(True)
    return math.sqrt(lost / all) if all else 0.0


def save_adapter(model, dir, base=""):
    """Write adapter_config.json and adapter_model.safetensors as PEFT reads them, into a directory that is being made.

    base: the model it changes, where PEFT looks for it."""
    found = changes(model)
    r = next(iter(found.values())).lora_A.size(0)
    state = {f"base_model.model.model.{name}.{part}.weight": getattr(m, part).detach().contiguous()
             for name, m in found.items() for part in ("lora_A", "lora_B")}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": r,
              "lora_alpha": SCALE * r, "target_modules": sorted({name.rpartition(".")[2] for name in found}),
              "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True}
    Path(dir).mkdir(parents=True)
    save_file(state, Path(dir) / "adapter_model.safetensors", metadata={"format": "pt"})
    (Path(dir) / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
