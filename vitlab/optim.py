"""How a step changes the weights: optimisers, the learning rate's schedule, the precision of the arithmetic."""

import math
import time
from collections import defaultdict
from functools import cache

import torch
from torch import Tensor, nn

from vitlab.config import RunConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    The same steps as `torch.optim.Muon`, which computes in bf16 wherever it runs: on a CPU without instructions for
    bf16 that takes longer than the rest of a training step. This one keeps to float32 there, and takes all matrices
    of one shape at once.
    """

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                rows, columns = shape[0], math.prod(shape[1:])
                grads = [p.grad for p in params]
                for p in params:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                averages = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, averages, group["momentum"])  # Nesterov's look ahead
                steps = orthogonal(torch.stack(ahead).flatten(2)).view(-1, *shape).unbind()
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, steps, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, R, C) matrices with singular values near 1 and the same singular vectors, by five Newton–Schulz iterations.

    The coefficients, Jordan's, lift small singular values fast and leave all of them between about 0.7 and 1.2.
    """
    x = matrices.bfloat16() if matrices.is_cuda and torch.cuda.get_device_capability() >= (8, 0) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def build_optimizers(model: nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
    """AdamW or SGD for all weights, or Muon for the hidden layers' matrices and AdamW for the rest.

    Hidden are those of the blocks, and the convolutional tokenizer's after its first layer: a kernel (O, I, k, k) is
    the matrix (O, I·k·k).

    Weight decay acts on matrices and kernels alone: not on biases, norms, the class token and positions. Each group
    keeps its peak learning rate as `peak`.
    """
    bare, matrices, kernels = [], [], []
    deeper = [name for name, p in model.named_parameters() if name.startswith("embed.layers.") and p.ndim == 4][1:]
    for name, p in model.named_parameters():
        if p.ndim <= 1 or name in ("cls_token", "pos_embed"):
            bare.append(p)
        elif config.optimizer == "muon" and (name.startswith("blocks.") or name in deeper):
            matrices.append(p)
        else:
            kernels.append(p)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": bare, "weight_decay": 0.0}]
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
    """The dtype of autocast: the parameter's, or bf16 where the device gains from it, else float32."""
    if config.precision != "auto":
        return PRECISIONS[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    # narrow models spend their time outside matrix products, where the casts cost more than bf16 gains
    return torch.bfloat16 if config.dim >= NARROW and bf16_pays() else torch.float32


@cache
def bf16_pays() -> bool:
    """Whether this CPU multiplies matrices at least 1.5 times as fast in bf16 as in float32, by trying.

    Instructions for bf16 do not say so: one server's CPU was 3.3 times as fast with them, another's half as fast.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(6):  # in turns, the best of each: another process may want the cores now and then
        for dtype in best:
            a = torch.ones(1024, 1024, dtype=dtype)
            start = time.perf_counter()
            a @ a
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] >= 1.5 * best[torch.bfloat16]


def precision_name(config: RunConfig, device: torch.device) -> str:
    """`precision_of` by the name that the parameter has for it."""
    return {dtype: name for name, dtype in PRECISIONS.items()}[precision_of(config, device)]


def autocast(config: RunConfig, device: torch.device, cache: bool = True) -> torch.autocast:
    dtype = precision_of(config, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32, cache_enabled=cache)
