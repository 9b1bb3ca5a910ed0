"""What the chapters' exercises ask of a reader's answer: `check("2.1", …)` says right, or not yet and why.

A check looks at what the answer does, not at how it is written. Solutions stand folded in the notebooks.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vitlab.analysis import metrics
from vitlab.config import RunConfig
from vitlab.data.splits import imbalanced_counts
from vitlab.errors import LabError
from vitlab.machine import ROOT
from vitlab.models import linear_vit, vit
from vitlab.models.registry import SHARED, build_model
from vitlab.training.fit import fit, prepared

if TYPE_CHECKING:
    from vitlab.lab import Lab


def check(exercise: str, *answer: Any) -> bool:
    """Print whether the answer to an exercise, "2.1", is right, and if not what is missing; returns whether it is."""
    exercise = str(exercise)  # a number means the same
    if exercise not in CHECKS:
        raise LabError(f"there is no exercise {exercise!r}: there are {', '.join(CHECKS)}")
    try:
        missing = CHECKS[exercise](*answer)
    except Exception as error:  # of the reader's code: what it is, they have to see
        missing = f"your answer raised {type(error).__name__}: {error}"
    print(f"Exercise {exercise}: {f'not yet, {missing}' if missing else 'right.'}")
    return not missing


# ---------------------------------------------------------------- 1


def _long_tail(ratio: float) -> str:
    total = sum(imbalanced_counts([500] * 10, "exponential", ratio))
    return "" if abs(total - 1500) <= 15 else f"a ratio of {ratio:g} keeps {total:,} images, not 1,500"


def _root_sampler(weights: Callable[[Tensor, Tensor], Tensor]) -> str:
    counts = torch.tensor([400, 100, 25])
    labels = torch.arange(3).repeat_interleave(counts)[torch.randperm(525, generator=torch.Generator().manual_seed(0))]
    of_images = torch.as_tensor(weights(labels, counts))
    if of_images.shape != labels.shape:
        return f"it returns {tuple(of_images.shape)} weights for {len(labels)} images"
    if not (of_images.isfinite().all() and of_images.min() >= 0 and of_images.sum() > 0):
        return "weights below zero, or that are no numbers, or nothing but zero, cannot be drawn by"
    if any(len(of_images[labels == k].unique()) > 1 for k in range(3)):
        return "images of one class get different weights"
    drawn = torch.zeros(3).index_add(0, labels, of_images.float())
    wanted = counts.sqrt() / counts.sqrt().sum()
    shares = drawn / drawn.sum()
    if torch.allclose(shares, wanted, atol=1e-3):
        return ""
    shown = ", ".join(f"{share:.0%}" for share in shares)
    return f"of classes with 400, 100 and 25 images it draws {shown}, where the roots are as 20 : 10 : 5"


# ---------------------------------------------------------------- 2


def _smaller_vit(config: RunConfig, smaller: RunConfig) -> str:
    whole, half = (sum(p.numel() for p in build_model(c, 10, 1).parameters()) for c in (config, smaller))
    if (smaller.depth, smaller.num_tokens) != (config.depth, config.num_tokens):
        return "depth and number of tokens have to stay"
    return "" if 2 * half <= whole else f"it has {half / whole:.0%} of the parameters, and at most 50% are allowed"


def _cosine_attention(attention: type[nn.Module]) -> str:
    torch.manual_seed(0)
    layer, tokens = attention(16, 2, 5), torch.randn(3, 5, 16)
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([1.0, 2.0]).view_as(layer.scale))
    told = layer(tokens)
    if told.shape != tokens.shape:
        return f"it maps {tuple(tokens.shape)} to {tuple(told.shape)}"
    q, k, v = vit.split_heads(layer.qkv(tokens), 3, 2)
    cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    weights = (cosines * layer.scale.view(2, 1, 1)).softmax(-1)
    if torch.allclose(told, layer.proj((weights @ v).transpose(1, 2).flatten(2)), atol=1e-3):
        told.square().sum().backward()
        if layer.scale.grad is None or not layer.scale.grad.all():
            return "no gradient reaches the scale of each head"
        looked_at = layer.proj((layer.matrix(tokens) @ v).transpose(1, 2).flatten(2))
        shows = torch.allclose(told, looked_at, atol=1e-3)
        return "" if shows else "figures show other weights than it uses: change scores, not forward"
    lengths = torch.cat([torch.rand(3, 5, 4).repeat_interleave(8, 2) + 0.5, torch.ones(3, 5, 16)], 2)
    layer.qkv.register_forward_hook(lambda layer, tokens, projected: projected * lengths)
    if not torch.allclose(layer(tokens), told, atol=1e-3):
        return "the length of a token's query or key, in one head, changes the result, and cosines know no length"
    return "it is not the softmax, over the keys, of each head's scale times the cosines"


def trained_against(lab: "Lab", attention: type[nn.Module], epochs: int = 3) -> pd.DataFrame:
    """Validation accuracy by epoch of a ViT with the reader's attention and of one with ours, trained alike."""
    config, data, curves = lab.plan.config("ViT"), lab.data, {}
    for name, kind in (("yours", attention), ("ours", vit.Attention)):
        torch.manual_seed(config.seed)
        twin = type("ViT", (vit.ViT,), {"attention": kind})
        options = {option: getattr(config, option) for option in SHARED}
        model = prepared(twin(channels=data.channels, num_classes=len(data.classes), **options), data)
        _, history = fit(model, data, lab.params.recipe(epochs=epochs, minutes=0))
        curves[name] = history.set_index("epoch")["val_accuracy" if "val_accuracy" in history else "accuracy"]
    return pd.DataFrame(curves)


class Noticed(list[str]):
    """Names of tests that failed after a change; `file` is the one that was changed."""

    file = ""


def tests_that_notice(file: str, old: str, new: str, tests: str) -> Noticed:
    """Names of the tests in tests/<tests> that fail once `old` is replaced by `new` in a copy of vitlab/<file>."""
    if not (ROOT / "vitlab" / file).is_file():
        raise LabError(f"there is no vitlab/{file}: name the file by its place in vitlab, as models/vit.py")
    source = (ROOT / "vitlab" / file).read_text(encoding="utf-8")
    if old not in source:
        raise LabError(f"vitlab/{file} does not hold {old!r}: copy it from there")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vitlab", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, "vitlab", file).write_text(source.replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", f"tests/{tests}"]
        # no colours, for which a notebook's kernel asks: they would stand between the words that are read here
        environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PY_COLORS")}
        environment |= {"PYTHONPATH": folder, "NO_COLOR": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode > 1:
        raise LabError(f"pytest could not run tests/{tests}: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    noticed = Noticed(re.findall(r"^FAILED tests/\S+?::(\S+)", done.stdout, re.MULTILINE))
    noticed.file = file
    return noticed


def _noticed(names: Sequence[str], file: str) -> str:
    if not isinstance(names, Noticed):
        return "pass what exercises.tests_that_notice(…) has returned"
    if names.file != file:
        return f"break vitlab/{file}, and not {names.file}"
    return "" if names else "no test has noticed: break something else as well"


# ---------------------------------------------------------------- 3


def _cheap_keep_ratio(lab: "Lab", keep_ratio: float) -> str:
    def share(ratio: float) -> float:
        macs = lab.costs.macs(lab.plan.config("DynamicViT").replace(keep_ratio=ratio))
        return sum(macs.values()) / sum(lab.costs.macs(lab.plan.config("ViT, fine-tuned")).values())

    if not np.isclose(keep_ratio * 20, round(keep_ratio * 20)):
        return f"{keep_ratio:g} is no multiple of 0.05"
    if share(keep_ratio) > 0.75:
        return f"at {keep_ratio:g} it does {share(keep_ratio):.1%} of the ViT's multiply-adds"
    higher = round(keep_ratio + 0.05, 2)
    return "" if higher > 1 or share(higher) > 0.75 else f"{higher:g} would still do, with {share(higher):.1%}"


def _norm_score(predictor: type[nn.Module]) -> str:
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 8) * torch.rand(2, 6, 1) * 5
    scores = predictor()(tokens, torch.ones(2, 6))
    if scores.shape != (2, 6, 2):
        return f"it returns {tuple(scores.shape)} for 2 images of 6 tokens, and (2, 6, 2) is wanted: keep and drop"
    order = (scores[..., 0] - scores[..., 1]).argsort(1)  # what `DynamicViT` goes by
    told = "the longest token is not the one whose first score exceeds the second by most"
    return "" if torch.equal(order, tokens.norm(dim=-1).argsort(1)) else told


# ---------------------------------------------------------------- 4


def _break_even(tokens: int) -> str:
    config = RunConfig(dim=256, heads=4)

    def pays(count: int) -> bool:
        linear, softmax = (sum(a.macs(count, config).values()) for a in (linear_vit.LinearAttention, vit.Attention))
        return linear < softmax

    if not pays(tokens):
        return f"with {tokens} tokens softmax needs no more"
    return "" if not pays(tokens - 1) else f"{tokens - 1} tokens are enough"


def _linear_order(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    torch.manual_seed(0)
    q, k, v = (torch.rand(1, 2, 40, 8) + 0.1 for _ in range(3))  # features of queries and keys, positive; values
    weights = q @ k.transpose(-2, -1)
    wanted = weights / weights.sum(-1, keepdim=True) @ v
    if not torch.allclose(attention(q, k, v), wanted, atol=1e-4):
        return "the result is another one than that of the quadratic form"
    work = []
    for tokens in (128, 256):
        given = [torch.rand(1, 2, tokens, 8) for _ in range(3)]
        with FlopCounterMode(display=False) as counter, _Numbers() as numbers:
            attention(*given)
        work.append(counter.get_total_flops() + numbers.made)
    if not work[0]:
        return "it makes no tensor: write it with torch"
    return "" if work[1] <= 2.1 * work[0] else f"twice the tokens take {work[1] / work[0]:.1f} times the work"


class _Numbers(TorchDispatchMode):
    """How many numbers the tensors have that are made: products element by element are no FLOPs to torch's counter."""

    made = 0

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given, new = (
            [part for part in tree_leaves(parts) if isinstance(part, Tensor)] for parts in ((args, kwargs), made)
        )
        places = {part.untyped_storage().data_ptr() for part in given}  # a view, or what is written in place
        self.made += sum(part.numel() for part in new if part.untyped_storage().data_ptr() not in places)
        return made


# ---------------------------------------------------------------- 5


def _block_macs(macs: int) -> str:
    tokens, dim = 65, 512
    right = 4 * tokens * dim**2 + 2 * tokens**2 * dim + 8 * tokens * dim**2
    if macs == 2 * right:
        return "these are FLOPs, two for each MAC"
    return "" if macs == right else f"it is {'more' if (macs or 0) < right else 'less'}"


def _median_time(seconds: Callable[[Callable[[], object], Callable[[], float]], float]) -> str:
    nine, further = [5.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 90.0], 1000.0  # their median is no other nine's, nor mean
    for first in (100.0, 0.0):
        now, left = [0.0], [first, *nine]

        def work(now: list = now, left: list = left) -> None:
            now[0] += left.pop(0) if left else further

        told, wanted = seconds(work, lambda now=now: now[0]), float(np.median(nine))
        if told != wanted:
            calls = ", ".join(f"{time:g}" for time in nine)
            return (
                f"of a first call of {first:g} s and nine of {calls} s it says {told}, and their median is {wanted:g}"
            )
    return ""


# ---------------------------------------------------------------- 6


def _corrected(p: float) -> str:
    right = float(metrics.holm(np.array([0.01, 0.02, 0.04]))[1])
    return "" if p is not None and abs(p - right) < 1e-9 else "the second smallest of three is multiplied by two"


def _exact_mcnemar(p_value: Callable[[int, int], float]) -> str:
    for only_a, only_b in ((3, 9), (9, 3), (5, 5), (0, 6), (0, 0)):
        labels = np.zeros(only_a + only_b + 4, int)
        a, b = np.zeros((len(labels), 2)), np.zeros((len(labels), 2))
        a[:, 0] = b[:, 0] = 1
        b[:only_a, 1] = a[only_a : only_a + only_b, 1] = 2  # answers that only one of them gets right
        wanted, told = metrics.mcnemar(a, b, labels)["p"], p_value(only_a, only_b)
        if abs(told - wanted) > 1e-9:
            return f"for {only_a} and {only_b} images it says {told:.4g}, and it is {wanted:.4g}"
    return ""


CHECKS: dict[str, Callable[..., str]] = {
    "1.1": _long_tail,
    "1.2": _root_sampler,
    "2.1": _smaller_vit,
    "2.2": _cosine_attention,
    "2.3": partial(_noticed, file="models/vit.py"),
    "3.1": _cheap_keep_ratio,
    "3.2": _norm_score,
    "3.3": partial(_noticed, file="models/dynamic_vit.py"),
    "4.1": _break_even,
    "4.2": _linear_order,
    "5.1": _block_macs,
    "5.2": _median_time,
    "6.1": _corrected,
    "6.2": _exact_mcnemar,
}
