"""The Vision Transformer (Dosovitskiy et al. 2021), block by block; the other models are this one with a part replaced.

Shapes: B images, N patches, T tokens (N, plus the class token if there is one), D = dim, H = heads.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitlab.machine import fused_attention_pays

if TYPE_CHECKING:
    from vitlab.config import RunConfig


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token: (B, C, S, S) -> (B, N, D), eq. 1 of Dosovitskiy et al."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, D, S/P, S/P) -> (B, N, D)

    @staticmethod
    def macs(config: "RunConfig", channels: int) -> int:
        return config.num_tokens * channels * config.patch_size**2 * config.dim


class ConvEmbed(nn.Module):
    """As many tokens as PatchEmbed, made by a small stack of 3×3 convolutions (Xiao et al. 2021; Hassani et al. 2021).

    One convolution at full resolution, then for every halving, until one pixel is left a patch, one of stride 2 and
    one of stride 1. Batch norm between convolution and activation as in Xiao et al.; GELU for their ReLU, no 1×1
    convolution at the end.
    """

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in self.convolutions(channels, dim, patch_size):
            layers += [nn.BatchNorm2d(before), nn.GELU()] if layers else []
            layers.append(nn.Conv2d(before, after, 3, stride, padding=1, bias=False))
        layers[-1].bias = nn.Parameter(torch.zeros(dim))  # the others lead to a norm, which has one
        self.layers = nn.Sequential(*layers)

    @staticmethod
    def convolutions(channels: int, dim: int, patch_size: int) -> list[tuple[int, int, int]]:
        """Channels in, channels out and stride of each: what the layers and the formula are made of."""
        halvings = patch_size.bit_length() - 1
        widths = [max(dim >> (halvings - i), 8) for i in range(halvings)] + [dim]  # at full size, after each halving
        stack = [(channels, widths[0], 1)]
        for before, after in pairwise(widths):
            stack += [(before, after, 2), (after, after, 1)]
        return stack

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)

    @classmethod
    def macs(cls, config: "RunConfig", channels: int) -> int:
        macs, size = 0, config.image_size
        for before, after, stride in cls.convolutions(channels, config.dim, config.patch_size):
            size //= stride
            macs += 9 * before * after * size**2
        return macs

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Let the first kernels begin as the principal components of the 3×3 patches of `images`, each of variance 1.

        What they see is then decorrelated, which a short training has no time to learn (Jordan 2024, arXiv:2404.00498,
        section 3.2). Kernels beyond the 9·C components stay as they are.
        """
        first = self.layers[0]
        patches = nn.functional.unfold(images, first.kernel_size).transpose(1, 2).flatten(0, 1)  # (patches, C·9)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # the largest last
        components = (vectors / (values + 1e-4).sqrt()).T.flip(0)[: first.out_channels]
        first.weight[: len(components)] = components.unflatten(1, first.weight.shape[1:])


class LightEmbed(ConvEmbed):
    """ConvEmbed with half its channels until the last convolution, which widens them to `dim`: a third of its work.

    As deep as ConvEmbed, so that a token is made of as many pixels.
    """

    @staticmethod
    def convolutions(channels: int, dim: int, patch_size: int) -> list[tuple[int, int, int]]:
        *stack, (before, _, stride) = ConvEmbed.convolutions(channels, dim // 2, patch_size)
        return [*stack, (before, dim, stride)]


TOKENIZERS = {"patch": PatchEmbed, "conv": ConvEmbed, "light": LightEmbed}


def sincos_positions(grid: int, dim: int) -> Tensor:
    """(grid², dim) fixed positions: half of the channels sines and cosines of the column, half of the row.

    Frequencies 10000^(−4i/dim) as Vaswani et al. 2017, in two dimensions as MoCo v3 and MAE (He et al. 2022).
    """
    angles = torch.arange(grid)[:, None] * 10_000 ** -(torch.arange(dim // 4) / (dim // 4))  # (grid, dim/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)], dim=1)


def split_heads(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, T, parts·D) -> parts tensors of shape (B, H, T, D/H)."""
    batch, tokens, width = projected.shape
    return projected.view(batch, tokens, parts, heads, width // parts // heads).permute(2, 0, 3, 1, 4).unbind()


def masked_softmax(scores: Tensor, keep: Tensor) -> Tensor:
    """Softmax of scores (B, H, T, T) over the tokens that `keep` (B, T) has; every token sees itself (`Attention`)."""
    scores = scores.float()
    itself = torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)
    allowed = keep[:, None, None, :].masked_fill(itself, 1.0)  # (B, 1, T, T)
    # relative to the largest score in sight, so that a hidden one can't drown the others; its own exp stays finite
    largest = scores.masked_fill(allowed == 0, -torch.inf).amax(-1, keepdim=True).detach()
    exp = (scores - largest).clamp(max=0).exp() * allowed
    return exp / exp.sum(-1, keepdim=True)


class Attention(nn.Module):
    """Multi-head softmax attention, softmax(Q Kᵀ / √(D/H)) V (Vaswani et al. 2017, eq. 1).

    `keep` (B, T), 1 for a token that may be attended to and 0 for a pruned one, masks the attention as
    Rao et al. 2021, section 3.3: exp(score) · keep, normalised, where every token always sees itself. The product
    lets a gradient reach `keep`. No ε is added: what is pruned has exactly no influence.

    `log_sizes` (B, T), of how many patches each token is the mean: softmax(Q Kᵀ / √(D/H) + log s), so that a merged
    token counts as often as its patches did (Bolya et al. 2023, eq. 1). In `seen`, a dict, the layer leaves `keys` and
    `values` (B, H, T, D/H) and, if it has that key, `attention` (B, H, T, T): what a reduction of tokens looks at.
    Another softmax attention is a subclass with `scores` of its own: masks, sizes and what is looked at follow them.
    """

    def __init__(self, dim: int, heads: int, num_tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        own = type(self).scores is not Attention.scores or type(self).weights is not Attention.weights
        self.fusible = not own  # torch's fused attention knows this score alone

    def forward(
        self,
        tokens: Tensor,
        keep: Tensor | None = None,
        trace: dict | None = None,
        log_sizes: Tensor | None = None,
        seen: dict | None = None,
    ) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)  # (B, H, T, D/H) each
        unseen = trace is None and "attention" not in (seen or {})  # nobody looks at the weights
        if keep is None and unseen and self.fusible and fused_attention_pays(q):
            bias = None if log_sizes is None else log_sizes[:, None, None].to(q.dtype)
            out = nn.functional.scaled_dot_product_attention(q, k, v, bias)
        else:
            weights = self.weights(q, k, keep, log_sizes)
            if trace is not None:
                trace.setdefault("attention", []).append(weights.detach())
            if seen is not None and "attention" in seen:
                seen["attention"] = weights
            out = weights.to(v.dtype) @ v
        if seen is not None:
            seen |= {"keys": k, "values": v}
        return self.proj(self.merge(out, v))

    def merge(self, out: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D/H) -> (B, T, D): the heads side by side; v (B, H, T, D/H), for what adds to them."""
        return out.transpose(1, 2).flatten(2)

    def matrix(self, tokens: Tensor) -> Tensor:
        """(B, H, T, T): what each token (row) takes of each token's value, for looking at."""
        q, k, _ = split_heads(self.qkv(tokens), 3, self.heads)
        return self.weights(q, k, None)

    def weights(self, q: Tensor, k: Tensor, keep: Tensor | None, log_sizes: Tensor | None = None) -> Tensor:
        """(B, H, T, T) attention weights; each row sums to 1."""
        scores = self.scores(q, k)
        if log_sizes is not None:
            scores = scores + log_sizes[:, None, None]
        return scores.softmax(-1) if keep is None else masked_softmax(scores, keep)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries and keys (B, H, T, D/H) -> (B, H, T, T): how much each token asks of each, before the softmax."""
        return q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)

    @staticmethod
    def macs(tokens: int, config: "RunConfig") -> dict[str, int]:
        """Of one layer, by component, what differs between attentions: Q Kᵀ and the product with V."""
        return {"attention": 2 * tokens**2 * config.dim}


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(nn.functional.gelu(self.fc1(tokens)))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drop a residual branch for whole samples, scale up the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x)); eq. 2–3 of Dosovitskiy et al."""

    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, keep: Tensor | None = None, trace: dict | None = None, **also: Any) -> Tensor:
        """`also`: what an attention takes besides, as `Attention` does `log_sizes` and `seen`."""
        tokens = tokens + self.drop_path(self.dropout(self.attention(self.norm1(tokens), keep, trace, **also)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def resample(vectors: Tensor, grid: int) -> Tensor:
    """(1, extra + g², D) vectors of the places of a g×g grid, for a grid×grid one, bicubic; the `extra` in front stay.

    What a ViT knows by place serves images of another size so (Dosovitskiy et al. 2021, section 3.2).
    """
    old = math.isqrt(vectors.shape[1])
    if old == grid:
        return vectors
    front, places = vectors.split([vectors.shape[1] - old**2, old**2], dim=1)
    # what it does along one axis as a matrix: the gradient of a product is added up in a fixed order, also on a GPU
    unit = torch.eye(old, device=vectors.device)[None, None]
    along = nn.functional.interpolate(unit, size=(grid, old), mode="bicubic", antialias=True)[0, 0]  # (grid, g)
    with torch.autocast(vectors.device.type, enabled=False):
        places = torch.einsum("nijd,ai,bj->nabd", places.unflatten(1, (old, old)), along, along)
    return torch.cat([front, places.flatten(1, 2)], dim=1)


class ViT(nn.Module):
    """Images (B, C, S, S), float in [−1, 1], to logits (B, classes).

    With a dict as `trace`, the forward pass also leaves in it `tokens`, a list of the (B, T, D) tokens after the
    embedding and after each block, the last ones after the final norm, and `attention`, a list of the (B, H, T, T)
    weights of each block (softmax attention only). Images of another size S than `image_size` are taken as well:
    positions are resampled.
    """

    attention: type[nn.Module] = Attention

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        patch_size: int,
        tokenizer: str = "patch",
        pool: str = "cls",
        positions: str = "learned",
        init: str = "xavier",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        **attention_options: int | str,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.grid = image_size // patch_size
        self.num_patches = self.grid**2
        self.embed = TOKENIZERS[tokenizer](channels, dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "cls" else None
        num_tokens = self.num_patches + (pool == "cls")
        if positions == "learned":
            # ten times the paper's deviation: a short training has no time to make places differ
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_tokens, dim), std=0.2))
        else:  # zeros for the class token, as in MAE; known from the shape, so not saved
            fixed = nn.functional.pad(sincos_positions(self.grid, dim), (0, 0, num_tokens - self.num_patches, 0))
            self.register_buffer("pos_embed", fixed[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            Block(self.attention(dim, heads, num_tokens, **attention_options), dim, mlp_ratio, dropout, rate)
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.apply(_init)
        for block in self.blocks:
            for weight in block.attention.qkv.weight.chunk(3):  # Q, K and V are three matrices
                nn.init.xavier_uniform_(weight)
            if init == "small":  # as DeiT (Touvron et al. 2021): steps of a fixed size, such as Muon's, turn it sooner
                for layer in (block.attention.qkv, block.mlp.fc1):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
            for branch_end in (block.attention.proj, block.mlp.fc2):  # every block begins as the identity
                nn.init.zeros_(branch_end.weight)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed_tokens(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, T, D): patches, the class token in front, positions added."""
        tokens = self.embed(images)
        positions = resample(self.pos_embed, math.isqrt(tokens.shape[1]))
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        return self.dropout(tokens + positions)

    def pool_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D): the class token, or the mean of the patches, weighted by `keep` (B, T).

        1 for a kept and 0 for a pruned one, or the number of patches that were merged into a token.
        """
        if self.cls_token is not None:
            return tokens[:, 0]
        if keep is None:
            return tokens.mean(1)
        return (tokens * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)

    def encode(self, images: Tensor, trace: dict | None = None) -> Tensor:
        """(B, C, S, S) -> (B, T, D): the tokens after the last norm."""
        tokens = self.embed_tokens(images)
        for block in self.blocks:
            if trace is not None:
                trace.setdefault("tokens", []).append(tokens.detach())
            tokens = block(tokens, None, trace)
        tokens = self.norm(tokens)
        if trace is not None:
            trace["tokens"].append(tokens.detach())
        return tokens

    def forward(self, images: Tensor, trace: dict | None = None) -> Tensor:
        return self.head(self.pool_tokens(self.encode(images, trace)))

    def prepare(self, images: Tensor) -> None:
        """Look at some training images, float in [−1, 1], before training: the convolutional tokenizer is whitened."""
        if isinstance(self.embed, ConvEmbed):
            self.embed.whiten(images)

    @classmethod
    def patches_by_block(cls, config: "RunConfig") -> list[int]:
        """How many patches each block sees in inference."""
        return [config.num_tokens] * config.depth

    @classmethod
    def macs(cls, config: "RunConfig", channels: int, num_classes: int) -> dict[str, int]:
        """Multiply-adds of one image in inference, by component; the sum is the model's."""
        dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
        tokens = [patches + (config.pool == "cls") for patches in cls.patches_by_block(config)]
        attention = [cls.attention.macs(count, config) for count in tokens]
        return {
            "tokenizer": TOKENIZERS[config.tokenizer].macs(config, channels),
            "projections": sum(4 * count * dim * dim for count in tokens),
            **{part: sum(layer[part] for layer in attention) for part in attention[0]},
            "mlp": sum(2 * count * dim * hidden for count in tokens),
            "head": dim * num_classes,
        }


def _init(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases, as in the paper's code; norms keep their ones."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
