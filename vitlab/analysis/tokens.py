"""How a ViT does with fewer tokens: trained on with them or as it is, over keep ratios, and what it costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vitlab.analysis import attention, metrics
from vitlab.config import RunConfig
from vitlab.data.splits import Split
from vitlab.machine import device
from vitlab.models.registry import MODELS, build_model, reductions, start_from
from vitlab.training.evaluate import predict

if TYPE_CHECKING:
    from vitlab.lab.costs import Costs
    from vitlab.runs import Run

LOSS = 0.005  # that is thought small: half a point of accuracy
ROUNDING = 1e-9  # by which shares of equally many images may differ
TRACED = 100  # images at once whose attention is kept, of all blocks
OUTSIDE = ("tokenizer", "head")  # the components of a model's cost that no reduction can lower


def untrained() -> dict[str, str]:
    """Title -> name of the reductions that a trained ViT can take as it is; the others have something to learn."""
    return {title: name for title, name in reductions().items() if not hasattr(MODELS[name].build, "pace")}


def reduced(backbone: "Run", config: RunConfig) -> nn.Module:
    """The trained ViT of a run with the way to fewer tokens of `config`, without training; predictors are fresh.

    Those of a run that has some are left out. Of stages and keep ratio a ViT's own configuration may say something
    else: nothing depended on them when it was trained.
    """
    model = build_model(config, len(backbone.classes), backbone.record["channels"])
    start_from(model, {name: w for name, w in backbone.weights().items() if not name.startswith("predictors.")})
    return model.to(device(config.device)).eval()


def at_ratios(
    model: nn.Module, part: Split, config: RunConfig, ratios: Sequence[float], costs: "Costs"
) -> tuple[pd.DataFrame, dict[float, np.ndarray]]:
    """A row a keep ratio: tokens (patches a block sees, the mean over blocks), blocks' and all MACs, accuracy, its
    interval; and the answers, logits (N, classes), by ratio. `config`: of the model.
    """
    rows, answers, usual = [], {}, model.keep_ratio
    for ratio in ratios:
        model.keep_ratio = ratio
        answers[ratio] = predict(model, part, config).numpy()
        right = int((answers[ratio].argmax(1) == part.labels.numpy()).sum())
        low, high = metrics.wilson(right, len(part))
        score = {"accuracy": right / len(part), "low": low, "high": high}
        rows.append({"keep_ratio": ratio} | work(config.replace(keep_ratio=ratio), costs) | score)
    model.keep_ratio = usual
    return pd.DataFrame(rows), answers


def work(config: RunConfig, costs: "Costs") -> dict[str, float]:
    """tokens: patches that a block sees, the mean over the blocks; macs: of an image; block_macs: the blocks' part."""
    parts = costs.macs(config)
    tokens = float(np.mean(MODELS[config.model].build.patches_by_block(config)))
    inside = sum(count for name, count in parts.items() if name not in OUTSIDE)
    return {"tokens": tokens, "macs": sum(parts.values()), "block_macs": inside}


def small_loss(images: int) -> float:
    """What counts as a small loss on so many images: `LOSS`, but never less than two of them."""
    return max(LOSS, 2 / images)


def saving_at(curve: pd.DataFrame, unreduced: pd.Series, loss: float = LOSS) -> tuple[float, bool]:
    """The largest share of the blocks' MACs that can be saved at a `loss` of accuracy, and whether more loses more.

    curve: rows of one method with block_macs and accuracy; unreduced: the same of the ViT that all are compared with.
    A curve that does not begin with all tokens begins at the ViT itself. Interpolated between the last row that loses
    no more and the next; where that is the last row of all, its saving, False. Where none does: 0, True. Rows before
    may lose more: a ViT that was trained with few tokens is at its best with few.
    """
    rows = curve.sort_values("block_macs", ascending=False)
    saved, lost = 1 - rows["block_macs"] / unreduced["block_macs"], unreduced["accuracy"] - rows["accuracy"]
    points = list(zip(saved, lost, strict=True))
    points = points if (curve["keep_ratio"] == 1).any() else [(0.0, 0.0), *points]
    within = [i for i, (_, worse) in enumerate(points) if worse <= loss + ROUNDING]
    if not within:
        return 0.0, True
    (saves, loses), *beyond = points[within[-1] :]
    if not beyond:
        return max(0.0, saves), False
    more, worse = beyond[0]
    return max(0.0, saves + (loss - loses) / (worse - loses) * (more - saves)), True


def losses_apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray], labels: np.ndarray) -> pd.DataFrame:
    """A row a way to fewer tokens: method, difference, how much more accuracy ViT `one` loses by it than the `other`,
    and p by what each image says of both losses (`metrics.sign_test`), corrected for the ways (Holm).

    one, other: way -> logits (N, C) of a ViT with it; "" -> those with all tokens.
    """
    rows = []
    for name in (name for name in one if name):
        lost = [(of[""].argmax(1) == labels).astype(int) - (of[name].argmax(1) == labels) for of in (one, other)]
        votes = lost[0] - lost[1]
        rows.append({"method": name, "difference": votes.mean(), "p": metrics.sign_test(votes)})
    frame = pd.DataFrame(rows)
    return frame.assign(p=metrics.holm(frame["p"].to_numpy()))


def evenly(labels: Tensor | np.ndarray, limit: int) -> Tensor:
    """Places of `limit` of the images, or of all, evenly from their classes: of class folders the first are alike."""
    count = min(limit, len(labels))
    return torch.as_tensor(labels).argsort(stable=True)[torch.arange(count) * len(labels) // max(count, 1)]


def coverage(model: nn.Module, part: Split, limit: int = 500) -> dict[str, Any]:
    """Of `limit` images of a split (`evenly`): what the last stage leaves of each place, and how far it is from that.

    held (grid, grid): the part of a token that each place has, the mean over the images; distance: of a place to the
    nearest one that a token stands for, in patches.
    """
    where = []
    for some in evenly(part.labels, limit).split(TRACED):
        seen = attention.trace(model, part.images_at(some))
        where.append(attention.groups(attention.composition(seen["reduced"], seen["attention"])[-1], model.grid))
    where = torch.cat(where)
    places = attention.held(where).mean(0).view(model.grid, model.grid)
    return {"held": places, "distance": attention.distance_to_kept(where, model.grid)}
