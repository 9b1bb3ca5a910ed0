"""What a model answers to a split: the one function that looks at validation and test images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.analysis import metrics
from vitlab.config import Recipe
from vitlab.data.batches import to_float
from vitlab.data.splits import Split
from vitlab.machine import autocast, device_of, precision

EVAL_BATCH = 500


@torch.inference_mode()
def predict(model: nn.Module, split: Split, recipe: Recipe) -> Tensor:
    """(N, classes) float32 logits of a split, on the CPU, in evaluation mode."""
    device, training = device_of(model), model.training
    model.eval()
    # what a training step takes at once surely fits into memory
    parts = split.index.split(min(EVAL_BATCH, 2 * math.ceil(recipe.batch_size / recipe.accumulate)))
    with autocast(device, precision(recipe.precision, model, device)):
        logits = torch.cat([model(to_float(split.pool[part].to(device))).float().cpu() for part in parts])
    model.train(training)
    return logits


def validate(model: nn.Module, val: Split, recipe: Recipe) -> dict[str, float]:
    """Validation loss, accuracy and macro F1, by their names in the history; nothing without a validation split."""
    if not len(val):
        return {}
    logits = predict(model, val, recipe)
    accuracy = float((logits.argmax(1) == val.labels).double().mean())
    f1 = float(metrics.macro_f1(metrics.tally(logits.numpy(), val.labels.numpy())))
    return {"val_loss": float(F.cross_entropy(logits, val.labels)), "val_accuracy": accuracy, "val_macro_f1": f1}
