"""How a ViT does with fewer tokens: trained on with them or as it is, over keep ratios, and what it costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vitlab.analysis import attention, complexity, metrics, timing
from vitlab.config import RunConfig
from vitlab.data.splits import Split
from vitlab.machine import device, device_of
from vitlab.models.registry import MODELS, build_model, reductions, start_from
from vitlab.training.evaluate import predict

if TYPE_CHECKING:
    from vitlab.lab.costs import Costs
    from vitlab.runs import Run

LOSS = 0.005  # that is thought small: half a point of accuracy
OUTSIDE = ("tokenizer", "head")  # the components of a model's cost that no reduction can lower


def untrained() -> dict[str, str]:
    """Title -> name of the reductions that a trained ViT can take as it is; the others have something to learn."""
    return {title: name for title, name in reductions().items() if not hasattr(MODELS[name].build, "pace")}


def reduced(backbone: "Run", name: str, **changes: Any) -> nn.Module:
    """The trained ViT of a run with another model's way to fewer tokens, without training; predictors are fresh."""
    model = build_model(
        backbone.config.replace(model=name, **changes), len(backbone.classes), backbone.record["channels"]
    )
    start_from(model, backbone.weights())
    return model.to(device(backbone.config.device)).eval()


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


def saving_at(curve: pd.DataFrame, unreduced: pd.Series, loss: float = LOSS) -> tuple[float, bool]:
    """The share of the blocks' MACs that can be saved before `loss` of accuracy is lost, and whether it was reached.

    curve: rows of one method with block_macs and accuracy; unreduced: the same of the ViT that all are compared with.
    Interpolated where the loss first exceeds `loss`; if it never does, the largest saving that was measured.
    """
    rows = curve.sort_values("block_macs", ascending=False)
    saved, lost = 0.0, 0.0
    for row in rows.itertuples():
        more, worse = 1 - row.block_macs / unreduced["block_macs"], unreduced["accuracy"] - row.accuracy
        if worse > loss:  # which no row before did: lost <= loss
            return max(0.0, saved + (loss - lost) / (worse - lost) * (more - saved)), True
        saved, lost = more, worse
    return max(0.0, saved), False


def speeds(models: dict[str, nn.Module], images: Tensor, rounds: int = timing.ROUNDS) -> pd.DataFrame:
    """Time of float32 models by name, in rounds that take turns: batch 1 and all images (B, C, S, S) at once.

    Columns latency_ms and images_per_second (medians), and latency_ratio and speed_up, relative to the first model: the
    medians over the rounds, and with _spread their spread (`timing.ratio`).
    """
    one, many = (
        timing.in_turns({n: complexity.call_of(m, batch.to(device_of(m))) for n, m in models.items()}, rounds=rounds)
        for batch in (images[:1], images)
    )
    first = next(iter(models))
    frame = pd.DataFrame({"latency_ms": 1e3 * one.median(), "images_per_second": len(images) / many.median()})
    for column, values, reference in (("latency_ratio", one, one[first]), ("speed_up", many, many[first])):
        pairs = ((reference, values[n]) if column == "speed_up" else (values[n], reference) for n in models)
        frame[[column, column + "_spread"]] = [timing.ratio(*pair) for pair in pairs]
    return frame


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
    for some in evenly(part.labels, limit).split(100):
        seen = attention.trace(model, part.images_at(some))
        where.append(attention.groups(attention.composition(seen["reduced"], seen["attention"])[-1], model.grid))
    where = torch.cat(where)
    places = attention.held(where).mean(0).view(model.grid, model.grid)
    return {"held": places, "distance": attention.distance_to_kept(where, model.grid)}
