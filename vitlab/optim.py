"""How a step changes the weights: optimisers, the learning rate's schedule, the precision of the arithmetic."""

import math

import torch
from torch import nn

from vitlab.config import RunConfig

NARROW = 96  # width of a model below which matrix products are too small for bf16 and for several threads


def lr_factor(done: float, config: RunConfig) -> float:
    """Share of the peak learning rate when the share `done` of training, in [0, 1), is behind us.

    A linear rise over `warmup`, the peak until `hold`, then down to zero along half a cosine or a line.
    """
    if done < config.warmup:
        return max(done / config.warmup, 0.01)  # a first step of nothing would be wasted
    start = max(config.warmup, config.hold)
    fall = max(0.0, done - start) / (1 - start)
    return 0.5 * (1 + math.cos(math.pi * fall)) if config.schedule == "cosine" else 1 - fall


def build_optimizers(model: nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
    """AdamW or SGD for all weights, or Muon for the blocks' matrices and AdamW for the rest.

    Weight decay acts on matrices and kernels alone: not on biases, norms, the class token and positions. Each group
    keeps its peak learning rate as `peak`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    bare = ("cls_token", "pos_embed")
    decayed = [(name, p) for name, p in named if p.ndim > 1 and name not in bare]
    rest = [p for name, p in named if p.ndim <= 1 or name in bare]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        matrices = [p for name, p in decayed if name.startswith("blocks.") and p.ndim == 2]
        optimizers.append(torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
        decayed = [(name, p) for name, p in decayed if not (name.startswith("blocks.") and p.ndim == 2)]
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        optimizers.append(torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True))
    else:
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def precision_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """The dtype of autocast: the parameter's, or bf16 where the device has instructions for it, else float32."""
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    # narrow models spend their time outside matrix products, where the casts cost more than bf16 gains
    return torch.bfloat16 if config.dim >= NARROW and torch.cpu._is_avx512_bf16_supported() else torch.float32


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    dtype = precision_of(config, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
