"""Attentions whose cost grows linearly with the number of tokens T, in the same ViT.

Softmax attention costs T²·D multiply-adds for Q Kᵀ and as many again for the product with V. The replacements here
never form a T×T matrix in `forward`; `matrix` writes it out, for looking at.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models.vit import Attention, ViT, resample, split_heads

if TYPE_CHECKING:
    from vitlab.config import RunConfig

# φ(x) of kernelised attention: elu(x) + 1 (Katharopoulos et al. 2020, eq. 7), in two halves because F.elu takes several
# times as long on a CPU; and the ReLU of Performer (Choromanski et al. 2021)
FEATURE_MAPS = {"elu": lambda x: x.clamp(max=0).exp() + x.relu(), "relu": F.relu}
SMALLEST_NORMALISER = 1e-6


class LinearAttention(nn.Module):
    """Kernelised attention (Katharopoulos et al. 2020, eq. 4–6): φ(Q) (φ(K)ᵀ V) / (φ(Q) Σ φ(K)).

    Softmax's exp(q·k) is replaced by φ(q)·φ(k); the product is then associative and φ(K)ᵀ V, a (D/H)×(D/H) matrix,
    comes first. Normalised in float32. Same parameters as `vit.Attention`. With ReLU a query may share no feature
    with any key: numerator and normaliser are then 0, and so is the output, since the normaliser is kept above 1e-6.
    """

    def __init__(self, dim: int, heads: int, num_tokens: int, feature_map: str = "elu") -> None:
        super().__init__()
        self.feature_map = feature_map
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, keep: None = None, trace: dict | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)  # (B, H, T, D/H) each
        with torch.autocast(tokens.device.type, enabled=False):
            phi = FEATURE_MAPS[self.feature_map]
            q, k, values = phi(q.float()), phi(k.float()), v.float()
            context = k.transpose(-2, -1) @ values  # (B, H, D/H, D/H)
            normaliser = q @ k.sum(2, keepdim=True).transpose(-2, -1)  # (B, H, T, 1)
            out = q @ context / normaliser.clamp(min=SMALLEST_NORMALISER)
        return self.proj(self.merge(out.to(tokens.dtype), v))

    merge = Attention.merge

    def matrix(self, tokens: Tensor) -> Tensor:
        """(B, H, T, T): the weights in their quadratic form; each row sums to 1."""
        q, k, _ = split_heads(self.qkv(tokens), 3, self.heads)
        phi = FEATURE_MAPS[self.feature_map]
        weights = phi(q) @ phi(k).transpose(-2, -1)
        return weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_NORMALISER)

    @staticmethod
    def macs(tokens: int, config: "RunConfig") -> dict[str, int]:
        """φ(K)ᵀ V, φ(Q) (…), φ(Q) Σ φ(K)."""
        return {"attention": 2 * tokens * config.dim * (config.dim // config.heads) + tokens * config.dim}


class LinformerAttention(nn.Module):
    """Linformer (Wang et al. 2020, eq. 7): softmax(Q (E K)ᵀ / √(D/H)) (F V) with learned E, F from T to k tokens.

    The paper's three levels of sharing (section 4): headwise, one E and one F a layer for all its heads; key_value,
    E = F as well; layerwise, one E = F for all layers, which `LinformerViT` ties. T is fixed at construction; for an
    image of another size E and F are resampled as positions are, and all places together weigh as much as before.
    """

    def __init__(
        self, dim: int, heads: int, num_tokens: int, linformer_k: int, linformer_sharing: str = "headwise"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project_k = nn.Linear(num_tokens, linformer_k, bias=False)
        apart = linformer_sharing == "headwise"
        self.project_v = nn.Linear(num_tokens, linformer_k, bias=False) if apart else self.project_k
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, keep: None = None, trace: dict | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)
        k = self._project(self.project_k, k)
        v = self._project(self.project_v, v)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # (B, H, T, k)
        return self.proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))

    def matrix(self, tokens: Tensor) -> Tensor:
        """(B, H, T, T): softmax(…) F, what each token takes of each value; it may be negative."""
        q, k, _ = split_heads(self.qkv(tokens), 3, self.heads)
        weights = (q * q.shape[-1] ** -0.5 @ self._project(self.project_k, k).transpose(-2, -1)).softmax(-1)
        places = torch.eye(tokens.shape[1], device=tokens.device)[None, None]
        return weights @ self._project(self.project_v, places)  # (B, H, T, k) (k, T)

    @staticmethod
    def macs(tokens: int, config: "RunConfig") -> dict[str, int]:
        """E K and F V, then Q (E K)ᵀ and (…) (F V)."""
        each = 2 * tokens * config.linformer_k * config.dim
        return {"E K, F V": each, "attention": each}

    @staticmethod
    def _project(projection: nn.Linear, tokens: Tensor) -> Tensor:
        """(B, H, T, D/H) -> (B, H, k, D/H)."""
        tokens, fixed = tokens.transpose(-2, -1), projection.in_features
        if tokens.shape[-1] == fixed:
            return projection(tokens).transpose(-2, -1)
        weight = resample(projection.weight.T[None], math.isqrt(tokens.shape[-1]))[0].T
        front = fixed - math.isqrt(fixed) ** 2  # the class token, if there is one, is still one
        places = weight[:, front:] * ((fixed - front) / (tokens.shape[-1] - front))
        return F.linear(tokens, torch.cat([weight[:, :front], places], dim=1)).transpose(-2, -1)


class LinearViT(ViT):
    attention = LinearAttention


class LinformerViT(ViT):
    attention = LinformerAttention

    def __init__(self, *, linformer_sharing: str = "headwise", **options) -> None:
        super().__init__(linformer_sharing=linformer_sharing, **options)
        if linformer_sharing == "layerwise":
            for block in self.blocks[1:]:
                block.attention.project_k = block.attention.project_v = self.blocks[0].attention.project_k


def check_linformer(config: "RunConfig") -> None:
    if config.linformer_k > config.num_tokens:
        raise ValueError(f"linformer_k {config.linformer_k} must not exceed the {config.num_tokens} patches")
