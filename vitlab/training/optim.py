"""How a step changes the weights: optimisers, the learning rate's schedule, the average of the weights."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from vitlab.config import Recipe


def lr_factor(done: float, recipe: Recipe) -> float:
    """Share of the peak learning rate when the share `done` of training, in [0, 1), is behind us.

    A linear rise over `warmup`, the peak until `hold`, then down to zero along half a cosine or a line.
    """
    if done < recipe.warmup:
        return max(done / recipe.warmup, 0.01)  # a first step of nothing would be wasted
    start = max(recipe.warmup, recipe.hold)
    fall = max(0.0, done - start) / (1 - start)
    return 0.5 * (1 + math.cos(math.pi * fall)) if recipe.schedule == "cosine" else 1 - fall


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    The same steps as `torch.optim.Muon`, which computes in bf16 wherever it runs: on a CPU without instructions for
    bf16 that takes longer than the rest of a training step. This one keeps to float32 there, and takes all matrices
    of one shape at once.
    """

    def __init__(
        self, params: list[Tensor] | list[dict], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
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
        # x ← a x + (b G + c G G) x, with a, b, c = 3.4445, −4.7750, 2.0315
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW or SGD for all weights, or Muon for the hidden layers' matrices and AdamW for the rest.

    A kernel (O, I, k, k) counts as the matrix (O, I·k·k). Weight decay acts on matrices and kernels alone: not on
    biases, norms, the class token and positions; SGD adds it to the gradient: there take about a hundredth of AdamW's.
    A model whose weights do not all learn alike has a method `pace(name)`: the share of the learning rate, and the
    share of training before which the weight stands still. Each group keeps its peak learning rate as `peak`, and that
    share as `start`.
    """
    parts: dict[tuple[str, float, float], list[Tensor]] = defaultdict(list)
    hidden = hidden_matrices(model) if recipe.optimizer == "muon" else set()
    for name, p in model.named_parameters():
        no_decay = p.ndim <= 1 or name in ("cls_token", "pos_embed")
        kind = "no_decay" if no_decay else "matrix" if name in hidden else "kernel"
        parts[kind, *(model.pace(name) if hasattr(model, "pace") else (1.0, 0.0))].append(p)
    lr = {"matrix": recipe.muon_lr, "kernel": recipe.lr, "no_decay": recipe.lr}
    groups: dict[str, list[dict]] = {kind: [] for kind in lr}
    for (kind, rate, start), params in parts.items():
        decay = 0.0 if kind == "no_decay" else recipe.weight_decay
        groups[kind].append({"params": params, "lr": lr[kind] * rate, "weight_decay": decay, "start": start})
    optimizers: list[torch.optim.Optimizer] = []
    if groups["matrix"]:
        optimizers.append(Muon(groups["matrix"], lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    others = groups["kernel"] + groups["no_decay"]
    if recipe.optimizer == "sgd":
        optimizers.append(torch.optim.SGD(others, lr=recipe.lr, momentum=0.9, nesterov=True))
    else:
        optimizers.append(torch.optim.AdamW(others, lr=recipe.lr, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights that Muon takes: in a ViT those of the blocks, and the tokenizer's convolutions after its
    first; in another module all matrices and kernels but the first and the last, which meet pixels and classes.

    A depthwise kernel is no matrix, its rows have nothing to do with one another: AdamW takes it. A layer's Q, K and V
    stand in one matrix, and are made orthogonal as one.
    """
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    if not hasattr(model, "blocks"):
        hidden = [*weights][1:-1]
    else:
        convolutions = [name for name in weights if name.startswith("embed.layers.")]
        hidden = [name for name in weights if name.startswith("blocks.")] + convolutions[1:]
    return {name for name in hidden if weights[name].ndim < 4 or weights[name].shape[1] > 1}


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float, done: float = 0.0) -> None:
    """Learning rates for the step that has the share `done` of training behind it: `factor` of their peaks."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor if done >= group["start"] else 0.0


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights; statistics of BatchNorm are copied, they are averages already."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)
