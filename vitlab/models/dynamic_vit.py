"""DynamicViT (Rao et al. 2021, arXiv:2106.02034): a ViT that learns which tokens it can do without.

Before three of its blocks a small predictor scores every token still there. In training the tokens stay where they
are and attention masks the dropped ones, so that batches keep their shape and gradients reach the predictors; in
inference the best-scored are gathered and the rest is really gone.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models.vit import ViT

if TYPE_CHECKING:
    from vitlab.config import RunConfig

NUM_STAGES = 3


class Predictor(nn.Module):
    """Log-probability of keeping each token, from the token and from the mean of all kept ones (section 3.2).

    Tokens (B, N, D) and keep (B, N), 1 kept, 0 pruned -> (B, N, 2), [..., 0] keep and [..., 1] drop.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        local, pooled = self.features(tokens).chunk(2, dim=-1)  # (B, N, D/2) each
        weight = keep[:, :, None].to(pooled.dtype)
        # a sampled decision may drop every token of an image
        pooled = (pooled * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return F.log_softmax(self.score(torch.cat([local, pooled.expand_as(local)], -1)).float(), dim=-1)

    @staticmethod
    def macs(dim: int) -> int:
        """Of one token: dim→dim, dim→dim/2, dim/2→dim/4, dim/4→2."""
        return dim * dim + dim * (dim // 2) + (dim // 2) * (dim // 4) + (dim // 4) * 2


class RandomPredictor(nn.Module):
    """Scores drawn at random: what pruning costs where nobody has learned which tokens to keep."""

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        return torch.rand(*keep.shape, 2, device=tokens.device)


class DynamicViT(ViT):
    """A ViT with three pruning stages, each keeping about `keep_ratio` of the tokens the one before it left.

    In training, forward(images, trace) samples keep decisions with the Gumbel-softmax straight-through estimator
    (section 3.3) and leaves in `trace`: `keep`, a list of (B, N) decisions after each stage, and `final`, the
    (B, T, D) tokens after the last norm. In inference it gathers `tokens_per_stage()` tokens and leaves `attention`
    and `tokens` as `ViT` does, and `kept`, a list of the (B, n) indices of the patches left after each stage.
    `keep_ratio` may be changed at any time.

    Tokens: of N patches ⌊ρN⌋, ⌊ρ²N⌋ and ⌊ρ³N⌋ are left after the stages, one at least (ρ = 0.7: 44, 31, 21 of 64); the
    class token is never dropped. Loss: L_cls + 2 L_ratio + 0.5 L_KL + 0.5 L_distill, section 3.4 and its weights; the
    parameters ratio_weight and distill_weight change them, `terms` gives all but the first.

    Departures from the paper: stages stand before blocks depth/4, depth/2 and 3·depth/4 (its 3, 6, 9 of 12), rounded
    down; no ε in the masked softmax; with mean pooling the mean runs over the kept tokens; backbone and predictors
    learn from the first step at their optimisers' rates, where the authors hold the backbone still for five epochs and
    then train it with a hundredth of the predictors' rate. As in the authors' code rather than in the text: one MLP
    gives local and global features, a half each; KL(teacher ‖ student); L_distill is a mean over channels too.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        keep_ratio: float,
        ratio_weight: float = 2.0,
        distill_weight: float = 0.5,
        **options,
    ) -> None:
        super().__init__(dim=dim, depth=depth, **options)
        self.keep_ratio = keep_ratio
        self.term_weights = {"ratio": ratio_weight, "kl": distill_weight, "distill": distill_weight}
        self.stages = stages_of(depth)
        self.predictors = nn.ModuleList(Predictor(dim) for _ in self.stages)

    def targets(self) -> list[float]:
        """Share of the initial tokens that is left after each stage: ρ, ρ², ρ³."""
        return [self.keep_ratio ** (s + 1) for s in range(NUM_STAGES)]

    def tokens_per_stage(self) -> list[int]:
        """Patches left after each stage in inference."""
        return tokens_left(self.num_patches, self.keep_ratio)

    def forward(self, images: Tensor, trace: dict | None = None) -> Tensor:
        return self._masked(images, trace) if self.training else super().forward(images, trace)

    def _masked(self, images: Tensor, trace: dict | None) -> Tensor:
        tokens = self.embed_tokens(images)
        extra = int(self.cls_token is not None)  # the class token is never pruned
        keep = torch.ones(tokens.shape[0], tokens.shape[1] - extra, device=tokens.device)
        decisions = []
        policy = None
        for i, block in enumerate(self.blocks):
            if i in self.stages:
                scores = self.predictors[self.stages.index(i)](tokens[:, extra:], keep)
                keep = F.gumbel_softmax(scores, hard=True)[..., 0] * keep  # decisions can only remove
                decisions.append(keep)
                policy = F.pad(keep, (extra, 0), value=1.0)
            tokens = block(tokens, policy, None)
        tokens = self.norm(tokens)
        if trace is not None:
            trace |= {"keep": decisions, "final": tokens}
        return self.head(self.pool_tokens(tokens, policy))

    def terms(self, images: Tensor, teacher: ViT | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, classes), and the terms that training adds to the loss of classification, by name (section 3.4).

        ratio, and with a teacher kl and distill; `term_weights` weighs them.
        """
        trace: dict = {}
        logits = self(images, trace)
        terms = {"ratio": ratio_loss(trace["keep"], self.targets())}
        if teacher is not None:
            with torch.no_grad():
                seen = teacher.encode(images)
                answer = teacher.head(teacher.pool_tokens(seen)).float().log_softmax(-1)
            patches = slice(-trace["keep"][-1].shape[1], None)  # the class token's distance is in the logits already
            own = logits.float().log_softmax(-1)
            terms["kl"] = F.kl_div(own, answer, log_target=True, reduction="batchmean")
            terms["distill"] = distill_loss(trace["final"][:, patches], seen[:, patches], trace["keep"][-1])
        return logits, terms

    def encode(self, images: Tensor, trace: dict | None = None) -> Tensor:
        """(B, C, S, S) -> (B, n, D): the tokens that are left, after the last norm."""
        tokens = self.embed_tokens(images)
        extra = int(self.cls_token is not None)
        left = tokens_left(tokens.shape[1] - extra, self.keep_ratio)
        index = torch.arange(tokens.shape[1] - extra, device=tokens.device).expand(len(tokens), -1)
        for i, block in enumerate(self.blocks):
            if i in self.stages:
                stage = self.stages.index(i)
                patches = tokens[:, extra:]
                scores = self.predictors[stage](patches, torch.ones_like(patches[..., 0]))[..., 0]
                best = scores.topk(min(left[stage], patches.shape[1])).indices.sort().values
                index = index.gather(1, best)
                patches = patches.gather(1, best[:, :, None].expand(-1, -1, patches.shape[-1]))
                tokens = torch.cat([tokens[:, :extra], patches], dim=1)
                if trace is not None:
                    trace.setdefault("kept", []).append(index)
            if trace is not None:
                trace.setdefault("tokens", []).append(tokens.detach())
            tokens = block(tokens, None, trace)
        tokens = self.norm(tokens)
        if trace is not None:
            trace["tokens"].append(tokens.detach())
        return tokens

    @classmethod
    def patches_by_block(cls, config: "RunConfig") -> list[int]:
        patches = super().patches_by_block(config)
        for first, left in zip(stages_of(config.depth), tokens_left(config.num_tokens, config.keep_ratio), strict=True):
            patches[first:] = [left] * (config.depth - first)
        return patches

    @classmethod
    def macs(cls, config: "RunConfig", channels: int, num_classes: int) -> dict[str, int]:
        """Multiply-adds of one image, by component; a predictor looks at all that the stage before left."""
        seen = [config.num_tokens, *tokens_left(config.num_tokens, config.keep_ratio)[:-1]]
        return super().macs(config, channels, num_classes) | {"predictors": sum(seen) * Predictor.macs(config.dim)}


def check(config: "RunConfig") -> None:
    if config.depth <= NUM_STAGES:
        raise ValueError(f"DynamicViT's three pruning stages need depth 4 or more, got {config.depth}")
    if config.dim < 4 or config.dim % 2:
        raise ValueError(f"DynamicViT's predictors need an even dim of 4 or more, got {config.dim}")


def stages_of(depth: int) -> list[int]:
    """Blocks, counted from 0, that the pruning stages stand before."""
    return [depth * (s + 1) // (NUM_STAGES + 1) for s in range(NUM_STAGES)]


def tokens_left(num_patches: int, keep_ratio: float) -> list[int]:
    """Patches left after each stage: ⌊ρˢ N⌋, at least one; rounding errors of ρˢ must not cost one."""
    return [max(1, int(keep_ratio ** (s + 1) * num_patches + 1e-9)) for s in range(NUM_STAGES)]


def ratio_loss(decisions: list[Tensor], targets: list[float]) -> Tensor:
    """Mean over stages and images of (kept share − target)², section 3.4; decisions (B, N) each."""
    return torch.stack([(keep.mean(1) - target) ** 2 for keep, target in zip(decisions, targets, strict=True)]).mean()


def distill_loss(final: Tensor, teacher_final: Tensor, keep: Tensor) -> Tensor:
    """Mean squared distance of the kept tokens from the teacher's, (B, N, D) each, keep (B, N); section 3.4."""
    squared = ((final.float() - teacher_final.float()) ** 2).mean(-1)
    return (squared * keep).sum() / keep.sum().clamp(min=1)
