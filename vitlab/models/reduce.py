"""Fewer tokens: one ViT, several answers to which of them are needed.

Before some of its blocks a `ReducedViT` leaves ⌊ρˢN⌋ of its N patches: the same numbers of tokens at the same places
for all answers, so that only the choice differs. The papers reduce elsewhere (EViT and ToMe inside a block, between
attention and MLP); here all of them do it between two blocks, as DynamicViT does, and look at the block before.

    random  any of them                               Haurum et al. 2023, the baseline of their comparison
    topk    those that receive most attention         the same; EViT without the fused token
    evit    the same, the rest fused into one token   Liang et al. 2022, arXiv:2202.07800
    tome    none is dropped, alike ones are merged    Bolya et al. 2023, arXiv:2210.09461
    dynamic those that a predictor has learned        Rao et al. 2021: `dynamic_vit`

All but the last have the ViT's parameters: they reduce a trained ViT as it is, and can be trained on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.models.vit import ViT

if TYPE_CHECKING:
    from vitlab.config import RunConfig


def stages_of(depth: int, stages: Sequence[int] = ()) -> list[int]:
    """Blocks, counted from 0, that tokens go before: `stages`, or a quarter, a half, three quarters of the depth."""
    return list(stages) or [depth * s // 4 for s in (1, 2, 3)]


def tokens_left(num_patches: int, keep_ratio: float, stages: int = 3) -> list[int]:
    """Patches left after each stage: ⌊ρˢN⌋, at least one; rounding errors of ρˢ must not cost one."""
    return [max(1, int(keep_ratio ** (s + 1) * num_patches + 1e-9)) for s in range(stages)]


def rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, T, D) and (B, n) -> (B, n, D): of each image the tokens of `index`, each copied as a whole row."""
    if len(values) == 1:
        return values[0].index_select(0, index[0])[None]
    return values.flatten(0, 1).index_select(0, flat(index, values.shape[1])).unflatten(0, index.shape)


def flat(index: Tensor, tokens: int) -> Tensor:
    """(B, n) indices into (B, T) as (B·n,) indices into (B·T,)."""
    return (index + torch.arange(0, len(index) * tokens, tokens, device=index.device)[:, None]).flatten()


class ReducedViT(ViT):
    """A ViT that goes on with fewer tokens after each of its `stages`; ⌊ρˢN⌋ after the s-th, ρ = `keep_ratio`.

    `keep_ratio` may be changed at any time. The class token always stays. What `ViT` leaves in `trace` is of the tokens
    that each block saw. To a list `reduced` in it each reduction adds the (B, n, T) matrix whose rows say which share
    of each token before it a token after it consists of (`analysis.attention` maps tokens to places with it).

    A subclass says what it wants to see of the attention before (`wants`, keys of `Attention`'s `seen`), what it
    chooses, and how values of tokens are combined by that choice.
    """

    wants: tuple[str, ...] = ()

    def __init__(
        self, *, depth: int, keep_ratio: float, stages: Sequence[int] = (), proportional: bool = True, **options: Any
    ) -> None:
        super().__init__(depth=depth, **options)
        self.keep_ratio = keep_ratio
        self.stages = stages_of(depth, stages)
        self.proportional = proportional
        self.extra = int(self.cls_token is not None)  # tokens in front that always stay

    def tokens_per_stage(self) -> list[int]:
        """Patches left after each stage."""
        return tokens_left(self.num_patches, self.keep_ratio, len(self.stages))

    def choose(self, tokens: Tensor, sizes: Tensor | None, seen: dict[str, Tensor], stage: int, n: int) -> Any:
        """Which of the tokens (B, T, D) go on, so that n patches are left; a class token stays the first of them."""
        raise NotImplementedError

    def combine(self, values: Tensor, sizes: Tensor | None, choice: Any) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) of the tokens before -> (B, n, D) of those after, and how many patches each of them stands for.

        Linear in `values`: given the identity (B, T, T), it tells the part of each token before in each one after, by
        which figures draw what was kept and merged.
        """
        return rows(values, choice), None

    def best(self, scores: Tensor, n: int) -> Tensor:
        """(B, N) scores of the patches -> indices of the tokens that go on: the class token, the n best; unsorted."""
        index = scores.topk(n, sorted=False).indices
        return F.pad(index + 1, (1, 0)) if self.extra else index

    def forward(self, images: Tensor, trace: dict | None = None) -> Tensor:
        return self.head(self.pool_tokens(*self.reduced(images, trace)))

    def encode(self, images: Tensor, trace: dict | None = None) -> Tensor:
        """(B, C, S, S) -> (B, n, D): the tokens that are left, after the last norm."""
        return self.reduced(images, trace)[0]

    def reduced(self, images: Tensor, trace: dict | None = None) -> tuple[Tensor, Tensor | None]:
        """`encode`, and the (B, n) patches that each token stands for; None where each stands for itself alone."""
        tokens, sizes, log_sizes, seen = self.embed_tokens(images), None, None, {}
        left = tokens_left(tokens.shape[1] - self.extra, self.keep_ratio, len(self.stages))
        for i, block in enumerate(self.blocks):
            stage = self.stages.index(i) if i in self.stages else None
            if stage is not None and left[stage] < tokens.shape[1] - self.extra:
                choice = self.choose(tokens, sizes, seen, stage, left[stage])
                if trace is not None and "reduced" in trace:
                    each = torch.eye(tokens.shape[1], device=tokens.device).expand(len(tokens), -1, -1)
                    trace["reduced"].append(self.combine(each, sizes, choice)[0].detach())
                tokens, sizes = self.combine(tokens, sizes, choice)
                log_sizes = sizes.log() if sizes is not None and self.proportional else None
            if trace is not None:
                trace.setdefault("tokens", []).append(tokens.detach())
            seen = dict.fromkeys(self.wants) if i + 1 in self.stages else None
            tokens = block(tokens, None, trace, log_sizes=log_sizes, seen=seen)
        tokens = self.norm(tokens)
        if trace is not None:
            trace["tokens"].append(tokens.detach())
        return tokens, sizes

    @classmethod
    def patches_by_block(cls, config: "RunConfig") -> list[int]:
        patches, stages = super().patches_by_block(config), stages_of(config.depth, config.stages)
        for first, left in zip(stages, tokens_left(config.num_tokens, config.keep_ratio, len(stages)), strict=True):
            patches[first:] = [left] * (config.depth - first)
        return patches

    @classmethod
    def macs(cls, config: "RunConfig", channels: int, num_classes: int) -> dict[str, int]:
        """Multiply-adds of one image, by component; what the choice itself needs is one of them."""
        patches, stages = cls.patches_by_block(config), stages_of(config.depth, config.stages)
        steps = [(patches[i - 1], patches[i]) for i in stages if patches[i] < patches[i - 1]]
        choosing = sum(cls.macs_of_choice(before, after, config) for before, after in steps)
        return super().macs(config, channels, num_classes) | ({"choice": choosing} if choosing else {})

    @classmethod
    def macs_of_choice(cls, before: int, after: int, config: "RunConfig") -> int:
        """Of one stage, which finds `before` patches and leaves `after`."""
        return 0


class RandomViT(ReducedViT):
    """Drops patches at random: the baseline that every choice has to beat.

    In inference the same ones for the same place in a batch, so that an answer does not change from call to call.
    """

    def choose(self, tokens: Tensor, sizes: None, seen: dict[str, Tensor], stage: int, n: int) -> Tensor:
        patches = tokens.shape[1] - self.extra
        if self.training:
            return self.best(torch.rand(len(tokens), patches, device=tokens.device), n)
        # a hash in whole numbers below 2³¹: no generator's state, and the same wherever an exported model runs
        place = torch.arange(1, len(tokens) * patches + 1, device=tokens.device) + 7919 * tokens.shape[1]
        for _ in range(2):
            place = (place * place + 48271 * place) % (2**31 - 1)
        return self.best(place.view(len(tokens), patches).float(), n).sort(dim=1).values  # as places count again


class TopKViT(ReducedViT):
    """Keeps the patches that matter most to the block before, by one of three measures (`salience`).

    attention: what a patch receives from the class token, the mean over the heads (Liang et al. 2022, section 3.2);
    with mean pooling, where no token asks for all, from all tokens alike. values: each head's attention times the norm
    of the patch's value, since a weight on next to nothing moves nothing. norm: the length of the token itself.
    """

    def __init__(self, *, salience: str = "attention", **options: Any) -> None:
        super().__init__(**options)
        self.salience = salience
        self.wants = () if salience == "norm" else ("attention",)

    def scores(self, tokens: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """(B, N) of the patches."""
        if self.salience == "norm":
            return tokens[:, self.extra :].float().norm(dim=-1)
        attention = seen["attention"]  # (B, H, T, T)
        received = attention[:, :, 0] if self.extra else attention.mean(2)  # (B, H, T)
        if self.salience == "values":
            received = received * seen["values"].float().norm(dim=-1)
        return received.mean(1)[:, self.extra :]

    def choose(self, tokens: Tensor, sizes: Tensor | None, seen: dict[str, Tensor], stage: int, n: int) -> Any:
        return self.best(self.scores(tokens, seen), n)


class Fused(NamedTuple):
    """kept (B, n): tokens that go on as they are; weights (B, T): of those that are fused, 0 for the others, sum 1."""

    kept: Tensor
    weights: Tensor


class EViT(TopKViT):
    """Top-K whose rest is fused into one token, the mean weighted by attention (Liang et al. 2022, eq. 4).

    The fused token is one of the n. Departures: the weights are divided by their sum, without which the token is so
    short that a ViT trained without it cannot use it; and it counts as often as the patches in it, in attention and in
    the mean (`proportional`, ToMe's idea), so that a fused token met again at the next stage is no patch like others.
    """

    def choose(self, tokens: Tensor, sizes: Tensor | None, seen: dict[str, Tensor], stage: int, n: int) -> Fused:
        scores = self.scores(tokens, seen)
        kept = self.best(scores, n - 1)
        weights = F.pad(scores, (self.extra, 0)).scatter(1, kept, 0.0)
        return Fused(kept, weights / weights.sum(1, keepdim=True).clamp(min=1e-30))

    def combine(self, values: Tensor, sizes: Tensor | None, choice: Fused) -> tuple[Tensor, Tensor]:
        fused = choice.weights[:, None].to(values.dtype) @ values  # (B, 1, D)
        sizes = values.new_ones(values.shape[:2]) if sizes is None else sizes
        kept = sizes.gather(1, choice.kept)
        rest = sizes.sum(1, keepdim=True) - kept.sum(1, keepdim=True)
        return torch.cat([rows(values, choice.kept), fused], 1), torch.cat([kept, rest], 1)

    @classmethod
    def macs_of_choice(cls, before: int, after: int, config: "RunConfig") -> int:
        return (before + (config.pool == "cls")) * config.dim


class Pairs(NamedTuple):
    """Of the tokens at even places left (B, a) stay, gone (B, r) go into those at the odd places into (B, r)."""

    left: Tensor
    gone: Tensor
    into: Tensor


class ToMeViT(ReducedViT):
    """Merges tokens that are alike, drops none: bipartite soft matching (Bolya et al. 2023, section 3).

    Tokens at even places look for the most similar one at an odd place, by the cosine of their keys (the mean over the
    heads); the r most similar pairs become one token each, the mean weighted by sizes. The class token, at place 0, is
    never merged. At most half can go at once: where more have to, it is done again.
    """

    wants = ("keys",)

    @torch.no_grad()
    def choose(self, tokens: Tensor, sizes: Tensor | None, seen: dict[str, Tensor], stage: int, n: int) -> list[Pairs]:
        keys, choice = seen["keys"].mean(1), []  # (B, T, D/H)
        for r in _rounds(tokens.shape[1] - self.extra, n):
            if choice:
                keys, sizes = merge(keys, sizes, choice[-1])
            choice.append(self.match(F.normalize(keys, dim=-1), r))
        return choice

    def match(self, keys: Tensor, r: int) -> Pairs:
        """The r most similar pairs of the tokens with unit `keys` (B, T, D/H)."""
        similar = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
        if self.extra:
            similar[:, 0] = -torch.inf
        closest, into = similar.max(-1)
        order = closest.argsort()
        left, gone = order[:, :-r].sort().values, order[:, -r:]  # in order: it decides who meets whom the next time
        return Pairs(left, gone, into.gather(1, gone))

    def combine(self, values: Tensor, sizes: Tensor | None, choice: list[Pairs]) -> tuple[Tensor, Tensor]:
        for pairs in choice:
            values, sizes = merge(values, sizes, pairs)
        return values, sizes

    @classmethod
    def macs_of_choice(cls, before: int, after: int, config: "RunConfig") -> int:
        """The similarities of all even tokens with all odd ones."""
        macs = 0
        for r in _rounds(before, after):
            tokens = before + (config.pool == "cls")
            macs += (tokens - tokens // 2) * (tokens // 2) * (config.dim // config.heads)
            before -= r
        return macs


def _rounds(before: int, after: int) -> list[int]:
    """How many patches to merge at a time: at most half of them."""
    rounds = []
    while before > after:
        rounds.append(min(before - after, before // 2))
        before -= rounds[-1]
    return rounds


def merge(values: Tensor, sizes: Tensor | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(B, T, D) of tokens of `sizes` (B, T) patches -> (B, T − r, D): means weighted by sizes, and the new sizes."""
    counts = values.new_ones(*values.shape[:2], 1) if sizes is None else sizes[..., None]
    weighted = torch.cat([values if sizes is None else values * counts, counts], -1)  # (B, T, D + 1)
    odd = weighted[:, 1::2]
    into = flat(pairs.into, odd.shape[1])
    odd = odd.flatten(0, 1).index_add(0, into, rows(weighted, 2 * pairs.gone).flatten(0, 1)).view_as(odd)
    summed = torch.cat([rows(weighted, 2 * pairs.left), odd], 1)
    return summed[..., :-1] / summed[..., -1:], summed[..., -1]


def check(config: "RunConfig") -> None:
    if not config.stages and config.depth < 4:
        raise ValueError(f"three stages need depth 4 or more, got {config.depth}: name other stages")
    if config.stages != sorted(set(config.stages)) or (config.stages and not 0 < config.stages[-1] < config.depth):
        raise ValueError(f"stages must be rising block numbers from 1 to {config.depth - 1}, got {config.stages}")
