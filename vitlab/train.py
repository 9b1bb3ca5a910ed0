"""The one training loop and the one evaluation function.

Everything random in step t is a function of (seed, t): a run that was interrupted continues as if it had not been.
"""

import copy
import math
import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vitlab import metrics
from vitlab.augment import augment, epoch_order, mixed_seed
from vitlab.config import LabError, RunConfig
from vitlab.data import Data, Split, to_float
from vitlab.files import require_writable, writing
from vitlab.losses import Objective, sampling_weights
from vitlab.models import best_device, build_model, start_from
from vitlab.runs import Run, environment, identity

CHECKPOINT_SECONDS = 120
EVAL_BATCH = 500
NARROW = 96  # width of a model below which matrix products are too small for bf16 and for several threads


def fit(run: Run, config: RunConfig, data: Data, digest: str, teacher: Run | None = None) -> Run:
    """Train into `run`'s directory, or continue there; return it complete. A complete run is returned as it is.

    Validation accuracy chooses the epoch whose weights are kept; the test set is read once, at the end.
    """
    if run.complete:
        return run
    threads = torch.get_num_threads()
    # more threads make narrow models no faster, and many times slower where another process wants the cores too
    torch.set_num_threads(1 if config.dim < NARROW else threads)
    try:
        return _fit(run, config, data, digest, teacher)
    finally:
        torch.set_num_threads(threads)


def _fit(run: Run, config: RunConfig, data: Data, digest: str, teacher: Run | None) -> Run:
    device = best_device()
    num_classes, channels = len(data.classes), data.train.images.shape[1]
    model = build_model(config, num_classes, channels)
    require_writable(run.path, megabytes=1 + sum(p.numel() for p in model.parameters()) * 16 // 2**20)
    if teacher is not None:
        start_from(model, teacher.weights())
    model.to(device)
    average = copy.deepcopy(model).requires_grad_(False) if config.ema else model
    frozen = teacher.model() if teacher and config.model == "dynamic_vit" else None
    objective = Objective(config, data.counts, frozen).to(device)
    optimizers = build_optimizers(model, config)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    scaler = torch.amp.GradScaler(device.type, enabled=precision_of(config, device) is torch.float16)

    weights = sampling_weights(config.remedy, data.train.labels, data.counts)
    batch_size = min(config.batch_size, len(data.train))
    steps_an_epoch = len(data.train) // batch_size
    total = config.steps or config.epochs * steps_an_epoch
    images, labels = data.train.images.to(device), data.train.labels.to(device)

    with run.locked():
        if run.complete:  # another process finished it meanwhile
            return run
        step, history, best, seconds = 0, [], {"val_accuracy": -1.0, "epoch": 0, "weights": {}}, 0.0
        state = run.load_checkpoint()
        if state is None:
            run.write_json("config.json", _record(config, digest, data, total))
            run.write_json("environment.json", environment())
        else:
            model.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
            scaler.load_state_dict(state["scaler"])
            step, history, best, seconds = (state[name] for name in ("step", "history", "best", "seconds"))
        sums: dict[str, Tensor] = {} if state is None else state["sums"]
        started = saved = time.perf_counter()
        events = SummaryWriter(run.path, purge_step=step)
        bar = tqdm(total=total, initial=step, desc=run.path.name, unit="step", mininterval=2, leave=False)
        order = None
        while step < total:
            epoch, place = divmod(step, steps_an_epoch)
            if place == 0 or order is None:
                order = epoch_order(data.train.labels, weights, config.seed, epoch).to(device)
            seed_step(config.seed, step, device)
            batch = order[place * batch_size : (place + 1) * batch_size]
            inputs, targets = augment(images[batch], labels[batch], num_classes, config)
            for optimizer, lrs in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = peak * lr_factor(step, total, config.warmup)
            model.train()
            with autocast(config, device):
                loss, parts, logits = objective(model, inputs, targets)
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            scaler.update()
            if config.ema:
                decay = min(config.ema, (1 + step) / (10 + step))  # follow quickly while the weights still move far
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            accuracy = (logits.detach().argmax(1) == targets.argmax(1)).float().mean()
            for name, value in {"loss": loss, "accuracy": accuracy, **parts}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float().cpu()
            step += 1
            bar.update()

            if step % steps_an_epoch == 0 or step == total:
                spent = seconds + time.perf_counter() - started
                row = _epoch_row(step, steps_an_epoch, sums, spent, batch_size, optimizers)
                if not math.isfinite(row["loss"]):
                    raise LabError(
                        f"the loss of {run.path.name} became {row['loss']} by step {step} (lr {row['lr']:.2g}): "
                        "lower lr or clip, or use precision fp32"
                    )
                if len(data.val):
                    logits = predict(average, data.val, config)
                    row |= {"val_loss": _loss(logits, data.val), "val_accuracy": _accuracy(logits, data.val)}
                history.append(row)
                sums = {}
                if row.get("val_accuracy", math.inf) > best["val_accuracy"]:  # with no validation the last epoch counts
                    weights_now = {name: value.detach().clone() for name, value in average.state_dict().items()}
                    best = {
                        "val_accuracy": row.get("val_accuracy", -1.0),
                        "epoch": row["epoch"],
                        "weights": weights_now,
                    }
                for name, value in row.items():
                    events.add_scalar(name, value, step)
                shown = f"{row['images_per_second']:,.0f} images/s, validation {row.get('val_accuracy', math.nan):.1%}"
                bar.set_postfix_str(shown, refresh=False)
            elif time.perf_counter() - saved < CHECKPOINT_SECONDS:
                continue
            saved = time.perf_counter()
            run.save_checkpoint(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "scaler": scaler.state_dict(),
                    "step": step,
                    "history": history,
                    "best": best,
                    "seconds": seconds + saved - started,
                    "sums": sums,
                }
            )
        bar.close()
        events.close()
        _finish(run, config, data, history, best)
    return run


def evaluate(run: Run, config: RunConfig, data: Data) -> dict:
    """Read the test set with the run's chosen weights, leave predictions.npz, and return the scores."""
    logits = predict(run.model(), data.test, config)
    with writing(run.path / "predictions.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, logits=logits.numpy(), labels=data.test.labels.numpy())
    return metrics.scores(logits.numpy(), data.test.labels.numpy())


@torch.inference_mode()
def predict(model: nn.Module, split: Split, config: RunConfig) -> Tensor:
    """(N, classes) float32 logits of a split, on the CPU; the model is left in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    with autocast(config, device):
        batches = [model(to_float(images.to(device))).float().cpu() for images in split.images.split(EVAL_BATCH)]
    return torch.cat(batches)


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seed what step `step` draws: augmentation, dropout, stochastic depth, Gumbel noise."""
    mixed = mixed_seed(seed, step)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed would queue calls for absent devices in every step
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate in a step: a linear rise over `warmup` of all steps, then half a cosine."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / math.ceil(rise)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def build_optimizers(model: nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
    """AdamW or SGD for all weights, or Muon for the blocks' matrices and AdamW for the rest.

    Weight decay acts on matrices and kernels alone: not on biases, norms, the class token and positions.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    bare = ("cls_token", "pos_embed")
    decayed = [(name, p) for name, p in named if p.ndim > 1 and name not in bare]
    rest = [p for name, p in named if p.ndim <= 1 or name in bare]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        matrices = [p for name, p in decayed if name.startswith("blocks.") and p.ndim == 2]
        optimizers.append(torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
        decayed = [(name, p) for name, p in decayed if not (name.startswith("blocks.") and p.ndim == 2)]
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)]
    return [*optimizers, torch.optim.AdamW(groups, lr=config.lr, fused=True)]


def precision_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """The dtype of autocast: the parameter's, or bf16 where the device has instructions for it, else float32."""
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    # narrow models spend their time outside matrix products, where the casts cost more than bf16 gains
    return torch.bfloat16 if config.dim >= NARROW and torch.cpu._is_avx512_bf16_supported() else torch.float32


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    dtype = precision_of(config, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def _record(config: RunConfig, digest: str, data: Data, total: int) -> dict:
    """config.json: enough to build the model and to name the run again, and which images trained it."""
    return {
        "config": config.model_dump(),
        "identity": identity(config, digest),
        "classes": list(data.classes),
        "channels": data.train.images.shape[1],
        "steps": total,
        "counts": data.counts.tolist(),
        "train_index": data.train.index.tolist(),
    }


def _epoch_row(step: int, steps_an_epoch: int, sums: dict, seconds: float, batch_size: int, optimizers: list) -> dict:
    steps = step % steps_an_epoch or steps_an_epoch
    means = {name: float(total) / steps for name, total in sums.items()}
    row = {"epoch": math.ceil(step / steps_an_epoch), "step": step, "lr": optimizers[-1].param_groups[0]["lr"], **means}
    return row | {"seconds": seconds, "images_per_second": step * batch_size / seconds}


def _loss(logits: Tensor, split: Split) -> float:
    return float(F.cross_entropy(logits, split.labels))


def _accuracy(logits: Tensor, split: Split) -> float:
    return float((logits.argmax(1) == split.labels).double().mean())


def _finish(run: Run, config: RunConfig, data: Data, history: list[dict], best: dict) -> None:
    """History, the one look at the test set, and the summary that makes the run complete."""
    with writing(run.path / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
    run.save("model.pt", best["weights"])
    test = evaluate(run, config, data)
    last = history[-1]
    run.write_json(
        "summary.json",
        {
            "run": run.path.name,
            "parameters": sum(weight.numel() for weight in best["weights"].values()),
            "epoch": best["epoch"],
            "epochs": last["epoch"],
            "steps": last["step"],
            "train_images": len(data.train),
            "val_accuracy": best["val_accuracy"] if len(data.val) else None,
            "seconds": last["seconds"],
            "images_per_second": last["images_per_second"],
            "test": test,
        },
    )
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run.path / name).unlink(missing_ok=True)
