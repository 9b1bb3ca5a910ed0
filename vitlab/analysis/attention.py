"""What a trained model looked at: attention over the image, rollout, kept patches."""

import torch
from torch import Tensor, nn

from vitlab.data.batches import to_float
from vitlab.machine import device_of


@torch.inference_mode()
def trace(model: nn.Module, images: Tensor) -> dict:
    """What the forward pass of uint8 images (B, C, S, S) leaves behind: `tokens`, `attention`, `kept` (see `ViT`)."""
    seen: dict = {}
    model.eval()(to_float(images.to(device_of(model))), seen)
    return {name: [values.cpu() for values in layers] for name, layers in seen.items()}


@torch.inference_mode()
def matrices(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Of each block (B, H, T, T): what a token (row) takes of each token's value, for uint8 images (B, C, S, S).

    Of any attention that has a method `matrix`, so also of those that never form it; without a local term.
    """
    seen: list[Tensor] = []

    def look(attention: nn.Module, inputs: tuple) -> None:
        seen.append(attention.matrix(inputs[0]).cpu())

    hooks = [block.attention.register_forward_pre_hook(look) for block in model.blocks]
    try:
        model.eval()(to_float(images.to(device_of(model))))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def has_matrices(model: nn.Module) -> bool:
    """Whether `matrices` can look into a model: it has blocks, whose attentions have a method `matrix`."""
    blocks = getattr(model, "blocks", [])
    return len(blocks) > 0 and all(hasattr(block.attention, "matrix") for block in blocks)


def concentration(weights: Tensor) -> float:
    """How far from uniform rows of weights (..., T, T) that sum to 1 are: mean over the rows of T Σ w², 1 if uniform.

    Of T tokens weighted alike it is 1, of one token alone T.
    """
    return float((weights.square().sum(-1) * weights.shape[-1]).mean())


def attention_of_heads(attention: Tensor, grid: int) -> Tensor:
    """(B, H, T, T) weights to (B, H, grid, grid): what the class token attends to, or all patches on average."""
    has_cls = attention.shape[-1] > grid * grid
    rows = attention[:, :, 0, 1:] if has_cls else attention.mean(2)  # (B, H, N)
    return rows.unflatten(-1, (grid, grid)).cpu()


def rollout(attentions: list[Tensor], grid: int) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): (B, grid, grid), how much each patch flows into the class token.

    Heads averaged, half of the identity added for the residual path, rows normalised, layers multiplied.
    """
    flow = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights in attentions:
        mixed = weights.float().mean(1) + torch.eye(weights.shape[-1], device=weights.device)
        flow = mixed / mixed.sum(-1, keepdim=True) @ flow
    return attention_of_heads(flow[:, None], grid)[:, 0]
