"""What a trained model looked at: attention over the image, rollout, kept patches, confident mistakes."""

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn

from vitlab.data import to_float


@torch.inference_mode()
def trace(model: nn.Module, images: Tensor) -> dict:
    """What the forward pass of uint8 images (B, C, S, S) leaves behind: `tokens`, `attention`, `kept` (see `ViT`)."""
    seen: dict = {}
    device = next(model.parameters()).device
    model.eval()(to_float(images.to(device)), seen)
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


def confident_mistakes(logits: np.ndarray, labels: np.ndarray, most: int = 12) -> list[tuple[int, int, float]]:
    """(index, answer, confidence) of the wrongly classified, the surest first."""
    probabilities = softmax(logits, axis=1)
    answer = probabilities.argmax(1)
    wrong = np.flatnonzero(answer != labels)
    order = wrong[np.argsort(-probabilities[wrong, answer[wrong]], kind="stable")][:most]
    return [(int(i), int(answer[i]), float(probabilities[i, answer[i]])) for i in order]
