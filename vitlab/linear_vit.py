"""Two attentions whose cost grows linearly with the number of tokens T, in the same ViT.

Softmax attention costs T²·D multiply-adds for Q Kᵀ and as many again for the product with V. Both replacements here
never form a T×T matrix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.vit import ViT, split_heads


class LinearAttention(nn.Module):
    """Kernelised attention (Katharopoulos et al. 2020, eq. 4–6): φ(Q) (φ(K)ᵀ V) / (φ(Q) Σ φ(K)), φ(x) = elu(x) + 1.

    Softmax's exp(q·k) is replaced by φ(q)·φ(k); the product is then associative and φ(K)ᵀ V, a (D/H)×(D/H) matrix,
    comes first. Normalised in float32. Same parameters as `vit.Attention`.
    """

    def __init__(self, dim: int, heads: int, num_tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, keep: None = None, trace: dict | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)  # (B, H, T, D/H) each
        with torch.autocast(tokens.device.type, enabled=False):
            q, k, v = F.elu(q.float()) + 1, F.elu(k.float()) + 1, v.float()
            context = k.transpose(-2, -1) @ v  # (B, H, D/H, D/H)
            normaliser = q @ k.sum(2, keepdim=True).transpose(-2, -1)  # (B, H, T, 1)
            out = q @ context / normaliser
        return self.proj(out.to(tokens.dtype).transpose(1, 2).flatten(2))


class LinformerAttention(nn.Module):
    """Linformer (Wang et al. 2020, eq. 7): softmax(Q (E K)ᵀ / √(D/H)) (F V) with learned E, F from T to k tokens.

    One E and one F a layer, shared by its heads (the paper's headwise sharing). T is fixed at construction.
    """

    def __init__(self, dim: int, heads: int, num_tokens: int, linformer_k: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project_k = nn.Linear(num_tokens, linformer_k, bias=False)
        self.project_v = nn.Linear(num_tokens, linformer_k, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, keep: None = None, trace: dict | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)
        k = self.project_k(k.transpose(-2, -1)).transpose(-2, -1)  # (B, H, T, D/H) -> (B, H, k, D/H)
        v = self.project_v(v.transpose(-2, -1)).transpose(-2, -1)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # (B, H, T, k)
        return self.proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class LinearViT(ViT):
    attention = LinearAttention


class LinformerViT(ViT):
    attention = LinformerAttention
