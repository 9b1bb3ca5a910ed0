"""InLine attention (Han et al. 2024): linear attention that can tell its queries apart and sees its neighbours.

Two steps lead from kernelised attention to it, and each is a class here: weights that are shifted to the sum 1 instead
of divided, and a 3×3 term on the values. The same term on softmax and on kernelised attention is the control: what it
gives there is not the normalisation's.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitlab.models.linear_vit import FEATURE_MAPS, LinearAttention
from vitlab.models.vit import Attention, ViT, split_heads

if TYPE_CHECKING:
    from vitlab.config import RunConfig

INLINE_MAPS = {"identity": lambda x: x, **FEATURE_MAPS}  # φ: weights may be negative, so it need not be positive


class InjectiveAttention(nn.Module):
    """Linear attention with injective normalisation (Han et al. 2024, eq. 4–5), without the local term.

    Weights s/T φ(q_i)·(φ(k_j) − mean φ(K)) + 1/T with s = 1/√(D/H): each row sums to 1, as if divided, but queries of
    one direction and different lengths keep different weights. Written out, with V̄ the mean of the values,

        out_i = s/T φ(q_i) φ(K)ᵀ (V − V̄) + V̄,

    in float32. The scale s/T, left out in the paper's text, is that of its authors' code, and φ(x) = x as there. Same
    parameters as `vit.Attention`.
    """

    def __init__(self, dim: int, heads: int, num_tokens: int, inline_map: str = "identity") -> None:
        super().__init__()
        self.inline_map = inline_map
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, keep: None = None, trace: dict | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)  # (B, H, T, D/H) each
        with torch.autocast(tokens.device.type, enabled=False):
            phi = INLINE_MAPS[self.inline_map]
            scale = q.shape[-1] ** -0.5 / tokens.shape[1]
            mean = v.float().mean(2, keepdim=True)  # (B, H, 1, D/H)
            context = phi(k.float()).transpose(-2, -1) @ (v.float() - mean) * scale  # (B, H, D/H, D/H)
            out = phi(q.float()) @ context + mean
        return self.proj(self.merge(out.to(tokens.dtype), v))

    merge = Attention.merge

    def matrix(self, tokens: Tensor) -> Tensor:
        """(B, H, T, T): the weights in their quadratic form; each row sums to 1, and some may be negative."""
        q, k, _ = split_heads(self.qkv(tokens), 3, self.heads)
        phi = INLINE_MAPS[self.inline_map]
        scores = phi(q) @ phi(k).transpose(-2, -1) * q.shape[-1] ** -0.5
        return (scores - scores.mean(-1, keepdim=True) + 1) / tokens.shape[1]

    @staticmethod
    def macs(tokens: int, config: "RunConfig") -> dict[str, int]:
        """φ(K)ᵀ (V − V̄), φ(Q) (…)."""
        return {"attention": 2 * tokens * config.dim * (config.dim // config.heads)}


class Local(nn.Module):
    """Adds to an attention a 3×3 depthwise convolution of its values over their places, before the heads are mixed.

    One kernel a channel, the same for all images (Han et al. make them from the image). What stands in front of the
    places, the class token, is left as it is. Begins at zero: as the attention without it.
    """

    def __init__(self, dim: int, heads: int, num_tokens: int, **options: str) -> None:
        super().__init__(dim, heads, num_tokens, **options)
        # draws nothing at random, so that all other weights are those of the same model without it
        self.local = nn.utils.skip_init(nn.Conv2d, dim, dim, 3, padding=1, groups=dim, bias=False)
        nn.init.zeros_(self.local.weight)

    def merge(self, out: Tensor, v: Tensor) -> Tensor:
        grid = math.isqrt(v.shape[2])
        out, v = super().merge(out, v), super().merge(v, v)  # (B, T, D)
        front = v.shape[1] - grid**2
        near = self.local(v[:, front:].transpose(1, 2).unflatten(2, (grid, grid)))  # (B, D, G, G)
        return out + nn.functional.pad(near.flatten(2).transpose(1, 2), (0, 0, front, 0))

    @classmethod
    def macs(cls, tokens: int, config: "RunConfig") -> dict[str, int]:
        return super().macs(tokens, config) | {"local term": 9 * math.isqrt(tokens) ** 2 * config.dim}


class InLineAttention(Local, InjectiveAttention):
    """Injective normalisation and the local term."""


class LocalSoftmaxAttention(Local, Attention):
    """Softmax attention with the same local term."""


class LocalLinearAttention(Local, LinearAttention):
    """Kernelised attention with the same local term."""


class InjectiveViT(ViT):
    attention = InjectiveAttention


class InLineViT(ViT):
    attention = InLineAttention


class LocalViT(ViT):
    attention = LocalSoftmaxAttention


class LocalLinearViT(ViT):
    attention = LocalLinearAttention
