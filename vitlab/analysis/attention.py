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
