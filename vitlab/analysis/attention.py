"""What a trained model looked at: attention over the image, rollout, what became of each patch.

Where tokens are dropped or merged, a token is no place any more. `composition` says what each one consists of; with it
everything is drawn on the image as before.
"""

import math

import torch
from torch import Tensor, nn

from vitlab.data.batches import to_float
from vitlab.machine import device_of

ROUNDING = 1e-3  # by which the sum of a row of weights may miss 1


@torch.inference_mode()
def trace(model: nn.Module, images: Tensor) -> dict:
    """What the forward pass of uint8 images (B, C, S, S) leaves behind: `tokens`, `attention`, `reduced`.

    See `ViT` and `ReducedViT`; `reduced` is empty where all tokens stay.
    """
    seen: dict = {"reduced": []}
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
    """How far from uniform rows of weights (..., T, T) are: mean over the rows of T Σ w², 1 if uniform.

    Of T tokens weighted alike it is 1, of one token alone T; nan where rows do not all sum to 1, as Linformer's need
    not: it would then measure their sums and signs.
    """
    if (weights.sum(-1) - 1).abs().max() > ROUNDING:
        return math.nan
    return float((weights.square().sum(-1) * weights.shape[-1]).mean())


def attention_of_heads(attention: Tensor, grid: int) -> Tensor:
    """(B, H, T, T) weights to (B, H, grid, grid): what the class token attends to, or all patches on average.

    Of fewer tokens T: the weights times `composition(...)[-1][:, None]`, (B, H, T, all tokens).
    """
    has_cls = attention.shape[-1] > grid * grid
    rows = attention[:, :, 0, 1:] if has_cls else attention.mean(2)  # (B, H, N)
    return rows.unflatten(-1, (grid, grid)).cpu()


def heads_alike(heads: Tensor) -> float:
    """Mean cosine between the maps (B, H, grid, grid) of two heads of one image; 1 of a single head."""
    unit = torch.nn.functional.normalize(heads.flatten(2).float(), dim=-1)
    alike, count = unit @ unit.transpose(1, 2), heads.shape[1]
    return float(((alike.sum((1, 2)) - count) / (count * (count - 1))).mean()) if count > 1 else 1.0


def first_filters(model: nn.Module) -> Tensor:
    """(D, C, k, k) kernels of a model's first convolution: what makes tokens of pixels."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    return first.weight.detach().cpu()


def composition(reduced: list[Tensor], attention: list[Tensor]) -> list[Tensor]:
    """What the tokens of each block consist of: a (B, T, all tokens) matrix a block, its rows sum to 1.

    reduced, attention: what `trace` leaves. Where a block sees fewer tokens than the one before,
    a reduction lies between.
    """
    steps = iter(reduced)
    made = torch.eye(attention[0].shape[-1], device=attention[0].device).expand(len(attention[0]), -1, -1)
    blocks = []
    for weights in attention:
        if weights.shape[-1] < made.shape[1]:
            made = next(steps) @ made
        blocks.append(made)
    return blocks


def groups(made: Tensor, grid: int) -> Tensor:
    """(B, grid²): the token that each patch is part of, -1 for a dropped one; made: (B, T, all), of `composition`."""
    share, token = made[:, :, made.shape[-1] - grid * grid :].max(1)
    return token.masked_fill(share == 0, -1)


def held(where: Tensor) -> Tensor:
    """(B, N) `groups` -> (B, N): the part of a token that each patch has: 1 alone, 1/n as one of n, 0 dropped."""
    same = where[:, :, None] == where[:, None]
    return (where >= 0) / same.sum(-1)


def rollout(attentions: list[Tensor], grid: int, reduced: list[Tensor] = ()) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): (B, grid, grid), how much each patch flows into the answer.

    Into the class token, or the mean of all tokens. Heads averaged, half of that and half of the identity (the residual
    path), layers multiplied; a reduction of tokens between two layers is one more matrix.
    """
    steps = iter(reduced)
    flow = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights in attentions:
        if weights.shape[-1] < flow.shape[-2]:
            flow = next(steps) @ flow
        mixed = weights.float().mean(1) + torch.eye(weights.shape[-1], device=weights.device)
        flow = mixed / mixed.sum(-1, keepdim=True) @ flow
    return attention_of_heads(flow[:, None], grid)[:, 0]


# ---------------------------------------------------------------- why some can be dropped, and others not


def neighbour_similarity(tokens: Tensor, grid: int, centred: bool = True) -> tuple[float, float]:
    """Mean cosine of patches (B, grid², D or with a class token) beside or below each other, and of any two.

    centred: taken after subtracting each image's mean, which all of its tokens share.
    """
    patches = tokens[:, tokens.shape[1] - grid * grid :].float()
    unit = torch.nn.functional.normalize(patches - patches.mean(1, keepdim=True) if centred else patches, dim=-1)
    places = unit.unflatten(1, (grid, grid))
    beside = (places[:, :, 1:] * places[:, :, :-1]).sum(-1)
    below = (places[:, 1:] * places[:, :-1]).sum(-1)
    count = grid * grid
    any_two = ((unit.sum(1) ** 2).sum(-1) - count) / (count * (count - 1))
    return float(torch.cat([beside.flatten(), below.flatten()]).mean()), float(any_two.mean())


def distance_to_kept(where: Tensor, grid: int) -> float:
    """Mean distance, in patches, of a place to the nearest one that some token stands for; `groups` (B, grid²)."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    apart = torch.cdist(places, places).expand(len(where), -1, -1)
    return float(apart.masked_fill((where < 0)[:, None], torch.inf).amin(-1).mean())
