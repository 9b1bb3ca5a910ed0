"""DynamicViT (Rao et al. 2021, arXiv:2106.02034): a ViT that learns which tokens it can do without.

Before three of its blocks a small predictor scores every token still there. In training the tokens stay where they
are and attention masks the dropped ones, so that batches keep their shape and gradients reach the predictors; in
inference the best-scored are gathered and the rest is really gone.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models import reduce
from vitlab.models.reduce import ReducedViT
from vitlab.models.vit import ViT

if TYPE_CHECKING:
    from vitlab.config import RunConfig


class Predictor(nn.Module):
    """Log-probability of keeping each token, from the token and from the mean of all kept ones (section 3.2).

    Tokens (B, N, D) and keep (B, N), 1 kept, 0 pruned -> (B, N, 2), [..., 0] keep and [..., 1] drop.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        # a linear layer of [local, pooled] in two halves: what is pooled is the same for all tokens of an image
        self.of_local, self.of_pooled = nn.Linear(dim // 2, dim // 2), nn.Linear(dim // 2, dim // 2, bias=False)
        self.score = nn.Sequential(nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2))

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        return F.log_softmax(self.logits(tokens, keep).float(), dim=-1)

    def logits(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Before the softmax; without `keep` all tokens are there."""
        local, pooled = self.features(tokens).chunk(2, dim=-1)  # (B, N, D/2) each
        if keep is None:
            pooled = pooled.mean(1, keepdim=True)
        else:  # a sampled decision may drop every token of an image
            weight = keep[:, :, None].to(pooled.dtype)
            pooled = (pooled * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return self.score(self.of_local(local) + self.of_pooled(pooled))

    @staticmethod
    def macs(tokens: int, dim: int) -> int:
        """Of so many tokens: dim→dim, dim/2→dim/2, dim/2→dim/4, dim/4→2, and once dim/2→dim/2 for their mean."""
        half, quarter = dim // 2, dim // 4
        return tokens * (dim * dim + half * half + half * quarter + quarter * 2) + half * half


class DynamicViT(ReducedViT):
    """A ViT with pruning stages, each keeping about `keep_ratio` of the tokens the one before it left.

    In training, forward(images, trace) samples keep decisions with the Gumbel-softmax straight-through estimator
    (section 3.3) and leaves in `trace`: `keep`, a list of (B, N) decisions after each stage, and `final`, the
    (B, T, D) tokens after the last norm. In inference it gathers `tokens_per_stage()` tokens, as any `ReducedViT`.

    Loss: L_cls + 2 L_ratio + 0.5 L_KL + 0.5 L_distill, section 3.4 and its weights; the parameters ratio_weight and
    distill_weight change them, `terms` gives all but the first. As published, and by the lab's defaults, weights that
    come from the ViT learn at a hundredth of the predictors' rate (`backbone_rate`), after a sixth of the training in
    which they stand still (`frozen`: 5 of 30 epochs).

    Departures that are switched on by their parameter: other rates; other `stages`; `settle`, the share of training at
    its end in which the best-scored tokens are kept, as many as in inference, instead of a draw. Departures that are
    always there: stages stand before blocks depth/4, depth/2 and 3·depth/4 (its 3, 6, 9 of 12), rounded down; no ε in
    the masked softmax; with mean pooling the mean runs over the kept tokens. As in the authors' code rather than in
    the text: one MLP gives local and global features, a half each; KL(teacher ‖ student); L_distill is a mean over
    channels too.
    """

    def __init__(
        self,
        *,
        dim: int,
        ratio_weight: float,
        distill_weight: float,
        backbone_rate: float = 1.0,
        frozen: float = 0.0,
        settle: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(dim=dim, **options)
        self.term_weights = {"ratio": ratio_weight, "kl": distill_weight, "distill": distill_weight}
        self.backbone_rate, self.frozen, self.settle = backbone_rate, frozen, settle
        self.phase = "sampled"
        self.predictors = nn.ModuleList(Predictor(dim) for _ in self.stages)

    def pace(self, name: str) -> tuple[float, float]:
        """Of a weight: its learning rate over the recipe's, and the share of training before which it stands still."""
        return (1.0, 0.0) if name.startswith("predictors.") else (self.backbone_rate, self.frozen)

    def at(self, done: float) -> None:
        """A training step begins, with the share `done` of training behind it."""
        self.phase = "settled" if done >= 1 - self.settle else "sampled"

    def targets(self) -> list[float]:
        """Share of the initial tokens that is left after each stage: ρ, ρ², ρ³."""
        return [self.keep_ratio ** (s + 1) for s in range(len(self.stages))]

    def forward(self, images: Tensor, trace: dict | None = None) -> Tensor:
        return self.forward_masked(images, trace) if self.training else super().forward(images, trace)

    def choose(self, tokens: Tensor, sizes: None, seen: dict[str, Tensor], stage: int, n: int) -> Tensor:
        logits = self.predictors[stage].logits(tokens[:, self.extra :])
        return self.best(logits[..., 0] - logits[..., 1], n)

    def forward_masked(self, images: Tensor, trace: dict | None) -> Tensor:
        """(B, C, S, S) -> logits: all tokens stay where they are, and attention masks those that were dropped."""
        tokens = self.embed_tokens(images)
        keep = torch.ones(tokens.shape[0], tokens.shape[1] - self.extra, device=tokens.device)
        left = reduce.tokens_left(keep.shape[1], self.keep_ratio, len(self.stages))
        decisions = []
        policy = None
        for i, block in enumerate(self.blocks):
            if i in self.stages:
                stage = self.stages.index(i)
                scores = self.predictors[stage](tokens[:, self.extra :], keep)
                keep = self._decide(scores, keep, left[stage]) * keep  # decisions can only remove
                decisions.append(keep)
                policy = F.pad(keep, (self.extra, 0), value=1.0)  # the class token is never pruned
            tokens = block(tokens, policy, None)
        tokens = self.norm(tokens)
        if trace is not None:
            trace |= {"keep": decisions, "final": tokens}
        return self.head(self.pool_tokens(tokens, policy))

    def _decide(self, scores: Tensor, keep: Tensor, n: int) -> Tensor:
        """(B, N) of 0 and 1, with the gradient of a probability: drawn, or the n best of those still kept."""
        if self.phase == "sampled":
            return F.gumbel_softmax(scores, hard=True)[..., 0]
        soft = scores[..., 0].exp()
        best = (scores[..., 0] - scores[..., 1]).masked_fill(keep == 0, -torch.inf).topk(n).indices
        return torch.zeros_like(soft).scatter(1, best, 1.0) + soft - soft.detach()

    def terms(self, images: Tensor, teacher: ViT | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, classes), and the terms that training adds to the loss of classification, by name (section 3.4).

        ratio, and with a teacher kl and distill; `term_weights` weighs them.
        """
        trace: dict = {}
        logits = self(images, trace)
        terms = {"ratio": ratio_loss(trace["keep"], self.targets())}
        if teacher is not None and self.term_weights["kl"]:
            terms |= distilled(logits, trace["final"], trace["keep"][-1], images, teacher)
        return logits, terms

    @classmethod
    def macs(cls, config: "RunConfig", channels: int, num_classes: int) -> dict[str, int]:
        """Multiply-adds of one image, by component; a predictor looks at all that the stage before left."""
        parts = super().macs(config, channels, num_classes)
        return {("predictors" if name == "choice" else name): count for name, count in parts.items()}

    @classmethod
    def macs_of_choice(cls, before: int, after: int, config: "RunConfig") -> int:
        return Predictor.macs(before, config.dim)


class DistilledViT(ViT):
    """A control: a ViT that learns from its teacher by DynamicViT's losses, and drops nothing."""

    def __init__(self, *, distill_weight: float, **options: Any) -> None:
        super().__init__(**options)
        self.term_weights = {"kl": distill_weight, "distill": distill_weight}

    def terms(self, images: Tensor, teacher: ViT | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, classes), and with a teacher the terms kl and distill of `DynamicViT.terms`."""
        final = self.encode(images)
        logits = self.head(self.pool_tokens(final))
        patches = final.shape[1] - (self.cls_token is not None)  # of images that grow, fewer than at the end
        keep = torch.ones(len(images), patches, device=images.device)
        return logits, distilled(logits, final, keep, images, teacher) if teacher else {}


def check(config: "RunConfig") -> None:
    reduce.check(config)
    if config.dim < 4 or config.dim % 2:
        raise ValueError(f"DynamicViT's predictors need an even dim of 4 or more, got {config.dim}")


def ratio_loss(decisions: list[Tensor], targets: list[float]) -> Tensor:
    """Mean over stages and images of (kept share − target)², section 3.4; decisions (B, N) each."""
    return torch.stack([(keep.mean(1) - target) ** 2 for keep, target in zip(decisions, targets, strict=True)]).mean()


def distilled(logits: Tensor, final: Tensor, keep: Tensor, images: Tensor, teacher: ViT) -> dict[str, Tensor]:
    """kl and distill, section 3.4: how far answers and tokens (B, T, D) after the last norm are from the teacher's."""
    with torch.no_grad():
        seen = teacher.encode(images)
        answer = teacher.head(teacher.pool_tokens(seen)).float().log_softmax(-1)
    patches = slice(-keep.shape[1], None)  # the class token's distance is in the logits already
    kl = F.kl_div(logits.float().log_softmax(-1), answer, log_target=True, reduction="batchmean")
    return {"kl": kl, "distill": distill_loss(final[:, patches], seen[:, patches], keep)}


def distill_loss(final: Tensor, teacher_final: Tensor, keep: Tensor) -> Tensor:
    """Mean squared distance of the kept tokens from the teacher's, (B, N, D) each, keep (B, N); section 3.4."""
    squared = ((final.float() - teacher_final.float()) ** 2).mean(-1)
    return (squared * keep).sum() / keep.sum().clamp(min=1)
