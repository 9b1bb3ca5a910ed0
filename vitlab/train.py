"""The one training loop and the one evaluation function.

Everything random in step t is a function of (seed, t): a run that was interrupted continues as if it had not been, to
the bit on a CPU, and on a GPU wherever its kernels add in a fixed order.
Only a budget in minutes makes the result depend on the clock, because the learning rate then follows it.
"""

import contextlib
import copy
import dataclasses
import gc
import math
import time

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vitlab import metrics
from vitlab.augment import augment, epoch_order, mixed_seed, size_at
from vitlab.config import LabError, RunConfig
from vitlab.data import Data, Split, batches, to_float
from vitlab.files import require_writable, writing
from vitlab.losses import Objective, sampling_weights
from vitlab.models import best_device, build_model, keep_freed_memory, start_from
from vitlab.optim import NARROW, autocast, build_optimizers, lr_factor, precision_name, precision_of, set_lr
from vitlab.runs import Run, environment, identity

CHECKPOINT_SECONDS = 120
CHECK_STEPS = 10  # how often the loss is looked at: a GPU has to be waited for
EVAL_BATCH = 500
WHITENING_PIXELS = 2_000_000  # of training images, that the first kernels are fitted to


@dataclasses.dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the states of model, average, optimisers and scaler."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict] = dataclasses.field(default_factory=list)  # a row an epoch
    best: dict = dataclasses.field(default_factory=lambda: {"val_accuracy": -1.0, "epoch": 0, "weights": {}})
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # of the losses in the running epoch
    precision: str = ""  # that training began with

    def stopped_early(self, patience: int) -> bool:
        """No better validation accuracy for `patience` epochs; 0 never stops."""
        return bool(patience and self.history and self.history[-1]["epoch"] - self.best["epoch"] >= patience)


def fit(run: Run, config: RunConfig, data: Data, digest: str, teacher: Run | None = None) -> Run:
    """Train into `run`'s directory, or continue there; return it complete. A complete run is returned as it is.

    Validation accuracy chooses the epoch whose weights are kept; the test set is read once, at the end. Where several
    processes run this together (`accelerate launch -m vitlab.fit`), each takes its share of every batch, and the
    first one writes.
    """
    if run.complete:
        return run
    keep_freed_memory()
    threads = torch.get_num_threads()
    # more threads make narrow models no faster, and many times slower where another process wants the cores too
    torch.set_num_threads(1 if config.dim < NARROW else threads)
    try:
        return _fit(run, config, data, digest, teacher)
    except RuntimeError as error:  # torch has a class of its own for a GPU's memory, none for a CPU's
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
    finally:
        torch.set_num_threads(threads)
    raise LabError(f"out of memory in {run.path.name}: {_what_would_fit(config, data, teacher)}")


def _fit(run: Run, config: RunConfig, data: Data, digest: str, teacher: Run | None) -> Run:
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")  # autocast is ours, see optim
    device, main = accelerator.device, accelerator.is_main_process
    torch.backends.cudnn.deterministic = True  # some kernels for convolutions add in any order
    if device.type == "cuda":
        gc.collect()  # an earlier training's graphs hold memory, and a loader's forked process must not free them
    objective = _objective(config, data, teacher, device)
    model = objective.model
    average = copy.deepcopy(model).requires_grad_(False) if config.ema else model
    optimizers = build_optimizers(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=precision_of(config, device) is torch.float16)
    parts = {"model": model, "average": average} | ({"scaler": scaler} if scaler.is_enabled() else {})
    parts |= {f"optimizer{i}": optimizer for i, optimizer in enumerate(optimizers)}

    weights = sampling_weights(config.remedy, data.train.labels, data.counts)
    batch_size = min(config.batch_size, len(data.train))
    steps_an_epoch = len(data.train) // batch_size
    total = config.steps or config.epochs * steps_an_epoch
    resident = data.train.to(device) if data.train.fits(device) else None
    share = slice(accelerator.process_index, None, accelerator.num_processes)  # this process's images of a batch
    if batch_size % accelerator.num_processes:
        raise LabError(f"batch_size {batch_size} cannot be shared evenly by {accelerator.num_processes} processes")
    numbers = 5 * sum(p.numel() for p in model.parameters())  # weights, their average, the best ones, AdamW's averages
    require_writable(run.path, megabytes=1 + 4 * numbers // 2**20)

    with run.locked() if main else contextlib.nullcontext():
        [complete, state] = broadcast_object_list([run.complete, run.load_checkpoint() if main else None])
        if complete:  # another process finished it meanwhile
            return run
        at = Progress()
        if state is not None:
            at = Progress(**state["progress"])
            for name, part in parts.items():
                if name in state:  # no scaler, where the run began on a device that needs none
                    part.load_state_dict(state[name])
        elif main:
            run.write_json("config.json", _record(config, digest, data))
            run.write_arrays("split.npz", train=data.train.index.int().numpy())
        # a CPU is timed for it, and another timing could turn out otherwise: the first process's first one counts
        known = at.precision if device.type == "cpu" and at.precision != "fp16" else ""
        [at.precision] = broadcast_object_list([known or precision_name(config, device)])
        config = config.but(precision=at.precision)
        here = environment() | {"processes": accelerator.num_processes, "precision": at.precision}
        if main and run.environments[-1:] != [here]:
            run.write_json("environment.json", [*run.environments, here])
        shared = accelerator.prepare_model(objective)  # several processes: averages their gradients
        # a graph holds the gradients of one piece alone, and no loader's thread may use the GPU while it is recorded
        alone = accelerator.num_processes == config.accumulate == 1
        replayed = device.type == "cuda" and resident is not None and alone and not config.compile
        before, started = at.seconds, time.perf_counter()
        saved = started

        def clock() -> tuple[float, bool]:
            """Share of the budget that is used up, and whether a checkpoint is due: one clock for all processes."""
            by_time, due = config.minutes and not config.steps, False
            epoch_over = at.step % steps_an_epoch == 0 or at.step == total
            # the processes have to meet for it
            if accelerator.num_processes == 1 or by_time or epoch_over or at.step % CHECK_STEPS == 0:
                now = time.perf_counter()
                at.seconds, due = broadcast_object_list([before + now - started, now - saved >= CHECKPOINT_SECONDS])
            return at.seconds / (60 * config.minutes) if by_time else at.step / total, due

        # readers drop what an interrupted training wrote after its last checkpoint; what it wrote at it is valid
        events = SummaryWriter(run.path, purge_step=at.step + 1 if at.step else 0) if main else None
        options = {} if main else {"disable": True}
        bar = tqdm(desc=run.path.name, unit=" images", unit_scale=True, mininterval=2, leave=False, **options)
        feed, bad, shape = None, torch.tensor(-1, device=device), None
        done, _ = clock()
        while done < 1 and not at.stopped_early(config.patience):
            epoch, place = divmod(at.step, steps_an_epoch)
            if place == 0 or feed is None:
                order = epoch_order(data.train.labels, weights, config.seed, epoch)[place * batch_size :]
                feed = batches(data.train, resident, order, config, device)
            images, labels = next(feed)
            # every process draws for the whole batch, so that what is drawn does not depend on their number
            seed_step(config.seed, at.step, device)
            size = size_at(done, config)
            inputs, targets = augment(images, labels, len(data.classes), config, size)
            if accelerator.process_index:  # but dropout is not to repeat itself from share to share
                seed_step(config.seed, at.step, device, accelerator.process_index)
            if replayed and inputs.shape != shape:  # the first batch, or images have grown
                shared, shape = _recorded(objective, inputs, targets, config), inputs.shape
            set_lr(optimizers, lr_factor(done, config))
            losses = _backward(accelerator, shared, scaler, inputs[share], targets[share], config)
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if scaler.is_enabled() and not norm.isfinite():  # an overflow that one optimiser has met stops them all
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            scaler.update()
            if config.ema:  # follows quickly while the weights still move far
                _follow(average, model, min(config.ema, (1 + at.step) / (10 + at.step)))
            at.sums = {name: at.sums.get(name, 0.0) + value for name, value in losses.items()}
            bad = bad.masked_fill((bad < 0) & ~losses["loss"].isfinite(), at.step)
            if main and at.step == 0:
                events.add_images("batch", inputs[:32] / 2 + 0.5, 0)
            at.step += 1
            done, checkpoint_due = clock()
            bar.total = round(at.step * batch_size / done)
            bar.update(at.step * batch_size - bar.n)

            epoch_over = at.step % steps_an_epoch == 0 or done >= 1
            if (epoch_over or checkpoint_due or at.step % CHECK_STEPS == 0) and bad >= 0:
                raise LabError(
                    f"the loss of {run.path.name} became {float(at.sums['loss'])} in step {int(bad)}, with lr "
                    f"{optimizers[-1].param_groups[0]['lr']:.2g}: lower lr or clip, or use precision fp32; its last "
                    "checkpoint is kept"
                )
            if not epoch_over and not checkpoint_due:
                continue
            at.sums = accelerator.reduce(at.sums, "mean")
            if epoch_over:
                row = _epoch_row(at, steps_an_epoch, batch_size, optimizers) | _validate(average, data.val, config)
                [row] = broadcast_object_list([row])  # or each process would stop early by its own
                _keep_best(average, row, at)
                at.history.append(row)
                at.sums = {}
                done, _ = clock()  # the validation's time counts as well
                for name, value in row.items() if main else ():
                    events.add_scalar(name, value, at.step)
                if "val_accuracy" in row:
                    bar.set_postfix_str(f"validation {row['val_accuracy']:.1%}", refresh=False)
            if main:
                states = {name: part.state_dict() for name, part in parts.items()}
                run.save_checkpoint(states | {"progress": vars(at)})
            saved = time.perf_counter()
        bar.close()
        if main:
            events.close()
            _finish(run, config, data, at)
    accelerator.wait_for_everyone()
    return run


def _objective(config: RunConfig, data: Data, teacher: Run | None, device: torch.device) -> Objective:
    """The model with its loss, on the device: a new model, or one that starts from the teacher's weights."""
    model = build_model(config, len(data.classes), data.train.pool.shape[1])
    if teacher is not None:
        start_from(model, teacher.weights())
    elif config.tokenizer == "conv":
        every = -(-len(data.train) * config.image_size**2 // WHITENING_PIXELS)
        model.embed.whiten(to_float(data.train.some(slice(None, None, every))))
    if torch.distributed.is_initialized() and device.type == "cuda":  # there is none for a CPU
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    frozen = teacher.model() if teacher and config.model == "dynamic_vit" else None
    objective = Objective(config, data.counts, model.train(), frozen).to(device)
    if config.compile:
        objective.compile()
    return objective


def _recorded(objective: Objective, images: Tensor, targets: Tensor, config: RunConfig) -> nn.Module:
    """`objective` whose passes, forward and backward, are CUDA graphs: for batches of this shape, one at a time.

    A GPU is done with each of some hundred kernels of a small model before the next one is launched; a graph launches
    all of them at once. The weights are the same ones; recording leaves neither them nor the generators changed.
    """
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # graphs are recorded on a stream apart
    twin = copy.copy(objective)  # its forward is replaced; what it holds is shared
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}  # statistics of BatchNorm
    with torch.random.fork_rng([images.device]), autocast(config, images.device, cache=False):
        twin = torch.cuda.make_graphed_callables(twin, (images.clone(), targets.clone()), allow_unused_input=True)
    for name, buffer in objective.named_buffers():
        buffer.copy_(buffers[name])
    return twin


def _backward(
    accelerator: Accelerator,
    objective: nn.Module,
    scaler: torch.amp.GradScaler,
    inputs: Tensor,
    targets: Tensor,
    config: RunConfig,
) -> dict[str, Tensor]:
    """Leave the gradients of one batch, taken in `accumulate` pieces; return the mean losses and the accuracy."""
    means: dict[str, Tensor] = {}
    pieces = list(zip(inputs.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
    for i, (images, labels) in enumerate(pieces):
        # several processes meet to add up their gradients after the last piece alone
        with contextlib.nullcontext() if i == len(pieces) - 1 else accelerator.no_sync(objective):
            with autocast(config, inputs.device):
                loss, parts, logits = objective(images, labels)
            weight = len(images) / len(inputs)
            scaler.scale(loss * weight).backward()
        accuracy = (logits.argmax(1) == labels.argmax(1)).float().mean()
        for name, value in {"loss": loss, "accuracy": accuracy, **parts}.items():
            means[name] = means.get(name, 0.0) + value.detach().float() * weight
    return means


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights; statistics of BatchNorm are copied, they are averages already."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


def _validate(model: nn.Module, val: Split, config: RunConfig) -> dict[str, float]:
    """Validation loss and accuracy, by their names in the history; nothing where there is no validation split."""
    if not len(val):
        return {}
    logits = predict(model, val, config)
    return {"val_loss": float(F.cross_entropy(logits, val.labels)), "val_accuracy": _accuracy(logits, val)}


def _keep_best(model: nn.Module, row: dict[str, float], at: Progress) -> None:
    """Keep the weights of the epoch of `row` if it is the best one so far; with no validation the last one counts."""
    if row.get("val_accuracy", math.inf) > at.best["val_accuracy"]:
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        at.best = {"val_accuracy": row.get("val_accuracy", -1.0), "epoch": row["epoch"], "weights": weights}


def evaluate(run: Run, config: RunConfig, data: Data) -> dict:
    """Read the test set with the run's chosen weights, leave predictions.npz, and return the scores.

    Logits are kept with float16's three digits, half the size, and every score is computed from what is kept.
    """
    logits = predict(run.model(), data.test, config)
    run.write_arrays("predictions.npz", logits=logits.half().numpy(), labels=data.test.labels.numpy())
    return metrics.scores(*run.predictions)


@torch.inference_mode()
def predict(model: nn.Module, split: Split, config: RunConfig) -> Tensor:
    """(N, classes) float32 logits of a split, on the CPU, in evaluation mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    # what a training step takes at once surely fits into memory
    parts = split.index.split(min(EVAL_BATCH, 2 * -(-config.batch_size // config.accumulate)))
    with autocast(config, device):
        logits = torch.cat([model(to_float(split.pool[part].to(device))).float().cpu() for part in parts])
    model.train(training)
    return logits


def _accuracy(logits: Tensor, split: Split) -> float:
    return float((logits.argmax(1) == split.labels).double().mean())


def seed_step(seed: int, step: int, device: torch.device, process: int = 0) -> None:
    """Seed what step `step` draws: augmentation, dropout, stochastic depth, Gumbel noise."""
    mixed = mixed_seed(seed, step, process)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed would queue calls for absent devices in every step
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


def _what_would_fit(config: RunConfig, data: Data, teacher: Run | None) -> str:
    """Advice after a batch did not fit into memory: the largest half, quarter, … of it whose step does, by trying."""
    size = min(config.batch_size, len(data.train))
    device = best_device()
    while size > 1:
        size //= 2
        with contextlib.suppress(RuntimeError):
            inputs, targets = augment(
                data.train.some(slice(size)).to(device), data.train.labels[:size].to(device), len(data.classes), config
            )
            with autocast(config, device):
                loss, *_ = _objective(config, data, teacher, device)(inputs, targets)
            loss.backward()
            pieces = -(-config.batch_size // size)
            return f"accumulate {pieces} (the batch in {pieces} pieces) or batch_size {size} would fit"
    return "not even one image fits: lower dim, depth or image_size"


def _record(config: RunConfig, digest: str, data: Data) -> dict:
    """config.json: enough to build the model, to name the run again, and to know which images tested it."""
    return {
        "config": config.model_dump(),
        "identity": identity(config, digest),
        "test_digest": data.test.digest,
        "classes": list(data.classes),
        "channels": data.train.pool.shape[1],
        "counts": data.counts.tolist(),
    }


def _epoch_row(
    at: Progress, steps_an_epoch: int, batch_size: int, optimizers: list[torch.optim.Optimizer]
) -> dict[str, float]:
    steps = at.step % steps_an_epoch or steps_an_epoch
    row = {"epoch": math.ceil(at.step / steps_an_epoch), "step": at.step, "lr": optimizers[-1].param_groups[0]["lr"]}
    row |= {name: float(total) / steps for name, total in at.sums.items()}
    return row | {"seconds": at.seconds, "images_per_second": at.step * batch_size / at.seconds}


def _finish(run: Run, config: RunConfig, data: Data, at: Progress) -> None:
    """History, the one look at the test set, and the summary that makes the run complete."""
    with writing(run.path / "history.csv") as temporary:
        pd.DataFrame(at.history).to_csv(temporary, index=False)
    run.save("model.pt", at.best["weights"])
    test = evaluate(run, config, data)
    parameters = sum(p.numel() for p in run.model().parameters())
    last = at.history[-1]
    run.write_json(
        "summary.json",
        {
            "run": run.path.name,
            "parameters": parameters,
            "epoch": at.best["epoch"],
            "epochs": last["epoch"],
            "steps": last["step"],
            "train_images": len(data.train),
            "val_accuracy": at.best["val_accuracy"] if len(data.val) else None,
            "seconds": last["seconds"],
            "images_per_second": last["images_per_second"],
            "test": test,
        },
    )
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run.path / name).unlink(missing_ok=True)
