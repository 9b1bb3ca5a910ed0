"""How fast `fit` trains, against the usual course trainer, on this machine; nothing else should be running.

    python benchmarks/training.py            # the CPU profile's ViT and the course's ViT-Base: 5 to 10 minutes on a CPU

The course trainer: a DataLoader with two workers and PIL transforms (crop, flip, tensor, normalise), float32, AdamW.
Both train the same model on random images with batch 128, in turns, on the GPU if there is one. Times are medians over
steps; of the row in which images grow, means over a whole short schedule, but for its first steps.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vitlab import machine
from vitlab.analysis.complexity import macs
from vitlab.analysis.timing import seconds
from vitlab.config import RunConfig
from vitlab.data.augment import augment
from vitlab.data.splits import Data, Split
from vitlab.models.registry import build_model
from vitlab.parameters import load_params
from vitlab.runs import Run
from vitlab.training.fit import fit
from vitlab.training.optim import Muon
from vitlab.training.session import RunSession

BATCH, WARM_UP = 128, 3
DEVICE = machine.device()


class PilImages(Dataset):
    """Images and labels as torchvision's CIFAR10 hands them out: a PIL image at a time through the transforms."""

    def __init__(self, split: Split) -> None:
        self.arrays, self.labels = split.images.permute(0, 2, 3, 1).numpy(), split.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def course_steps(config: RunConfig, steps: int) -> list[float]:
    """Seconds of each step of the course trainer, in a process where `fit` has changed nothing."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(train_as_usual, config, steps).result()


def train_as_usual(config: RunConfig, steps: int) -> list[float]:
    data = random_data(BATCH * steps)
    times = []
    model = build_model(config, 10, 3).train().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05)
    start = now()
    for images, labels in DataLoader(PilImages(data.train), BATCH, shuffle=True, num_workers=2, drop_last=True):
        loss = F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        end = now()
        times.append(end - start)
        start = end
    return times


class Watched(RunSession):
    """Notes when each step begins."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.begun: list[float] = []

    def before_step(self, step: int) -> None:
        self.begun.append(now())


def our_steps(config: RunConfig, data: Data, steps: int) -> list[float]:
    """Seconds of each step of `fit`, from the beginning of one to the beginning of the next."""
    with tempfile.TemporaryDirectory() as folder:
        session = Watched(Run(Path(folder) / "run"))
        fit(build_model(config, 10, 3), data, config.replace(steps=steps + 1), session)
    return [after - before for before, after in itertools.pairwise(session.begun)]


def now() -> float:
    """Seconds, when the device has done what it was told."""
    machine.synchronize()
    return time.perf_counter()


def random_data(images: int) -> Data:
    torch.manual_seed(0)
    pixels, labels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8), torch.arange(images) % 10
    whole = Split.whole(pixels, labels)
    return Data(whole, whole.take(torch.arange(0)), whole.take(torch.arange(100)), tuple("abcdefghij"), "random")


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product, 4096×1024×1024, or of one that is large enough for a GPU."""
    rows, columns = (4096, 1024) if DEVICE.type == "cpu" else (8192, 8192)
    a, b = (torch.randn(n, columns, dtype=dtype, device=DEVICE) for n in (rows, columns))
    return 2 * rows * columns**2 / seconds(lambda: a @ b, at_least=2)[0]


def compare(name: str, config: RunConfig, steps: int, turns: int = 2) -> None:
    """Print a row: medians over steps, or means where images grow while training."""
    data = random_data(BATCH * (WARM_UP + 3 * steps))
    ours, course = [], []
    for _ in range(turns):
        ours += our_steps(config, data, WARM_UP + steps)[WARM_UP:]
        course += course_steps(config, WARM_UP + steps)[WARM_UP:]
    step, usual = (statistics.fmean(t) if config.start_size else statistics.median(t) for t in (ours, course))
    drawing = reached = "–"
    if not config.start_size:
        images, labels = data.train.images[:BATCH].to(DEVICE), data.train.labels[:BATCH].to(DEVICE)
        drawn = seconds(lambda: augment(images, labels, 10, config))[0]
        drawing = f"{drawn / step:.1%}"
        # the backward pass takes twice the products of the forward pass
        flops = 3 * 2 * sum(macs(config, 3, 10).values()) * BATCH / step
        dtype = machine.precision(config.precision, build_model(config, 10, 3), DEVICE)
        rate = matmul_rate(dtype)
        kind = str(dtype).removeprefix("torch.")
        reached = f"{flops / 1e9:.0f} of {rate / 1e9:.0f} ({kind}), {flops / rate:.0%}"
    speeds = f"{BATCH / step:.0f} | {BATCH / usual:.0f} | {usual / step:.2f}"
    print(f"| {name} | {speeds} | {drawing} | {reached} |", flush=True)


def muon(config: RunConfig) -> None:
    """One step of our Muon beside torch's, which computes in bf16 on every machine."""
    model = build_model(config, 10, 3).to(DEVICE)
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    for p in matrices:
        p.grad = torch.randn_like(p)
    ours, theirs = (cls(matrices, lr=0.02, weight_decay=0.05) for cls in (Muon, torch.optim.Muon))
    mine, their = seconds(ours.step)[0], seconds(theirs.step)[0]
    print(f"Muon, {config.dim}/{config.depth}: {mine * 1e3:.1f} ms a step, torch's own {their * 1e3:.1f} ms")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{machine.environment()['device']}, {torch.get_num_threads()} threads, batch {BATCH}, random images 32×32")
    print("| model | fit, images/s | course trainer | ratio | augmentation | GFLOP/s of a matrix product's |")
    print("|---|---|---|---|---|---|")
    profile = load_params(machine.ROOT / "params" / "cifar10_cpu.yaml").run()
    cpu = profile.replace(start_size=0)
    wide = cpu.replace(dim=192, depth=6, heads=3, mlp_ratio=4.0)
    base = load_params(machine.ROOT / "params" / "cifar10_gpu.yaml").run()
    compare(f"CPU profile, {cpu.dim}/{cpu.depth}/{cpu.heads}", cpu, steps=20)
    compare(f"the same over its schedule, images growing from {profile.start_size} pixels", profile, steps=40)
    compare("192/6/3, MLP ratio 4", wide, steps=12)
    compare("ViT-Base, 512/6/8, MixUp and CutMix", base, steps=6)
    print()
    muon(cpu)
