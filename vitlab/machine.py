"""All that is known of the machine: device, precision, threads, memory, the faster kernel, and what to record of it.

Each rule says where it was measured. None of them changes what is computed, but for rounding.
"""

import contextlib
import ctypes
import gc
import math
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import psutil
import torch
from torch import Tensor, nn

from vitlab.errors import LabError
from vitlab.neighbours import giving_way

ROOT = Path(__file__).resolve().parent.parent  # of the repository
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = 96  # width of a model below which matrix products are too small for bf16 and for several threads
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "papermill", "nbconvert")

CGROUPS = Path("/sys/fs/cgroup")  # Linux: limits of containers
OWN_CGROUPS = Path("/proc/self/cgroup")

# A trained Linformer's gradients hold numbers so small that a CPU treats them one by one: steps took twice as long.
# Set on import, because threads that exist already keep their setting.
torch.set_flush_denormal(True)


# ---------------------------------------------------------------- device


def device(name: str = "auto") -> torch.device:
    """The device of parameter `device`; auto is a CUDA GPU if there is one, else the CPU.

    mps (Apple) and xpu (Intel) take the same code path in float32; nobody has tested them.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.accelerator.current_accelerator(check_available=True)
    if name != "cpu" and (found is None or found.type != name):
        raise LabError(
            f"device is {name}, but torch finds {found.type if found else 'no GPU'} here: choose auto or cpu"
        )
    return torch.device(name)


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def synchronize() -> None:
    """Wait until the device has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def launched_processes() -> int:
    """How many processes `accelerate launch` started together with this one; 1 without it.

    Other programs leave WORLD_SIZE and RANK in the environment as well: the launcher's own mark counts.
    """
    return int(os.environ.get("WORLD_SIZE", 1)) if torch.distributed.is_torchelastic_launched() else 1


def require_as_launched() -> None:
    """LabError where `accelerate launch` was asked for several processes and started one: without a GPU it does."""
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # a parent that is gone, or of another user
        return
    asked = re.search(r"accelerate.*\blaunch\b.*--num[-_]processes[= ](\d+)", " ".join(words))
    if asked and int(asked[1]) > 1 and launched_processes() == 1:
        raise LabError(
            f"accelerate launch was asked for {asked[1]} processes and has started one, as it does without several "
            f"GPUs: add --multi_gpu, also for a CPU, or leave it to the parameter processes={asked[1]}"
        )


def finds_compiler() -> bool:
    """Whether torch.compile finds a compiler for what it writes."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def require_compiler() -> None:
    """LabError where there is none."""
    if not finds_compiler():
        raise LabError(
            "compile is true, but there is no C++ compiler: install one (Debian, Ubuntu: apt install g++), or choose "
            "compile=auto"
        )


def require_gpus(processes: int) -> None:
    """LabError where there are GPUs, but fewer than `processes`; without any, processes share the CPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > gpus:
        raise LabError(
            f"processes is {processes}, but there is a GPU for {gpus} of them: choose at most {gpus}, or hide the GPUs "
            "with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


# ---------------------------------------------------------------- precision and kernels


def width_of(model: nn.Module) -> float:
    """Numbers a token of `model` has; infinite for a module that does not say so."""
    return getattr(model, "dim", math.inf)


def precision(name: str, model: nn.Module, on: torch.device) -> torch.dtype:
    """The dtype of autocast: the parameter's, or bf16 (fp16 on older CUDA GPUs) where it pays, else float32."""
    if name != "auto":
        return PRECISIONS[name]
    if on.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    # narrow models spend their time outside matrix products, where the casts cost more than bf16 gains
    return torch.bfloat16 if on.type == "cpu" and width_of(model) >= NARROW and bf16_pays() else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    return next(name for name, known in PRECISIONS.items() if known is dtype)


@cache
def bf16_pays() -> bool:
    """Whether this CPU multiplies matrices at least 1.5 times as fast in bf16 as in float32, by trying.

    Instructions for bf16 do not say so: one server's CPU was 3.3 times as fast with them, another's half as fast.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(6):  # in turns, the best of each: another process may want the cores now and then
        for dtype in best:
            a = torch.ones(1024, 1024, dtype=dtype)
            start = time.perf_counter()
            a @ a
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] >= 1.5 * best[torch.bfloat16]


def autocast(on: torch.device, dtype: torch.dtype, cache: bool = True) -> torch.autocast:
    return torch.autocast(on.type, dtype, enabled=dtype is not torch.float32, cache_enabled=cache)


def fused_attention_pays(q: Tensor) -> bool:
    """Whether to take the fused kernel rather than the explicit product, q (B, H, T, D/H); benchmarks/models.py.

    On a GPU it is the faster one. On a CPU its bf16 is up to three times slower for short sequences; its float32
    handles tokens in blocks of 16 and the rest one by one. For short sequences and heads of width 32 that can cost a
    third of attention's time, most when training; for heads of width 64 both are within a tenth of each other. For a
    few images the number of calls counts, not the work: one kernel then takes half to four fifths of the other's time.
    """
    if q.device.type != "cpu":
        return True
    batch, tokens, left_over = q.shape[0], q.shape[2], q.shape[2] % 16
    if q.dtype is torch.bfloat16:
        return tokens >= 512
    if torch.is_grad_enabled():
        return tokens >= 128 or left_over == 0
    return batch <= 8 or tokens >= 48 or left_over <= 4


# ---------------------------------------------------------------- memory and threads


def free_memory(on: torch.device) -> int:
    """Bytes that are free on the device, or in main memory, as far as a container's limit lets us have them."""
    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0]
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _memory_limits())]))


@cache
def memory() -> int:
    """Bytes of main memory that this process may use at most."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


@cache
def cores() -> int:
    """CPUs that this process may use: those of the machine, of its affinity, and of its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    for folder in _cgroups("cpu"):
        limit = _numbers(folder / "cpu.max")  # version 2: quota and period; version 1 has a file for each
        limit = limit or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(limit) == 2 and limit[0] > 0 < limit[1]:
            allowed = min(allowed, math.ceil(limit[0] / limit[1]))
    return max(1, allowed)


def _memory_limits() -> list[tuple[int, int]]:
    """(limit, used) bytes of every control group around this process; what files may give back is not used."""
    limits = []
    for folder in _cgroups("memory"):
        names = ("memory.max", "memory.current", "inactive_file")
        if not (folder / names[0]).exists():  # version 1; no limit is one of 2⁶³ bytes there
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = _numbers(folder / names[0]), _numbers(folder / names[1])
        if limit and used and 0 <= limit[0] < 2**60:
            files = [line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith(names[2] + " ")]
            limits.append((limit[0], used[0] - sum(map(int, files))))
    return limits


def _cgroups(controller: str) -> list[Path]:
    """Folders of the control groups of version 1 or 2 that this process is in, the outermost first."""
    folders = []
    for line in _lines(OWN_CGROUPS):
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (CGROUPS / controllers, CGROUPS / controller) if controllers else (CGROUPS, CGROUPS / "unified"):
            # in a container the mount may be its own group, and the path that of the host
            inner = [mount.joinpath(*Path(path).parts[1 : n + 1]) for n in range(len(Path(path).parts))]
            folders += [folder for folder in inner if folder.is_dir()]
    return list(dict.fromkeys(folders))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # another system, or a controller that is off
        return []


def _numbers(path: Path) -> list[int]:
    """The numbers in a control group's file; "max", no limit, is −1."""
    return [-1 if word == "max" else int(word) for line in _lines(path)[:1] for word in line.split()]


@cache
def keep_freed_memory() -> None:
    """Have glibc keep for the next step what one step frees, for the rest of this process.

    It would return blocks of a tensor's size to the system and be given them back, cleared page by page, in every
    step, which costs a small ViT on a CPU 5 to 15% of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold, m_trim_threshold, libc = -3, -1, ctypes.CDLL(None)
        # an old glibc refuses the first; with the second alone it would return even more
        if libc.mallopt(m_mmap_threshold, 2**30):
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def give_back_memory() -> None:
    """Have glibc return to the system what is free: a notebook's kernel stays open when its training is over.

    After a training of the preset tiny, batch 64, that was 70 of 890 MB; most of the rest is torch itself.
    """
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Have an allocation that a container's limit does not allow fail, with a sentence, instead of killing the process.

    Linux gives memory that it does not have, and kills who then writes to it.
    """
    if not _memory_limits() or torch.cuda.is_available():  # CUDA maps far more than it uses
        yield
        return
    import resource

    mapped = [int(line.split()[1]) for line in _lines(Path("/proc/self/status")) if line.startswith("VmData:")]
    before = resource.getrlimit(resource.RLIMIT_DATA)
    ours = [1024 * mapped[0] + free_memory(torch.device("cpu"))] if mapped else []
    limit = min([*ours, *(bound for bound in before if bound >= 0)], default=before[0])  # -1: none
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def set_for_training(model: nn.Module) -> Iterator[None]:
    """Threads, memory and kernels as a training wants them; afterwards torch is set as before, its generators too."""
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    keep_freed_memory()
    if torch.cuda.is_available():
        gc.collect()  # an earlier training's graphs hold a GPU's memory
    try:
        # more threads make narrow models no faster, and many times slower where another process wants the cores too
        torch.set_num_threads(1 if width_of(model) < NARROW else threads)
        torch.backends.cudnn.deterministic = True  # some kernels for convolutions add in any order
        with within_memory(), giving_way(), torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic
        give_back_memory()


# torch reads the affinity, but no quota: 64 threads on two CPUs wait for each other most of the time.
torch.set_num_threads(min(torch.get_num_threads(), cores()))


# ---------------------------------------------------------------- places


def cache_folder() -> Path:
    """The folder of what can be made again, decoded images above all: $VITLAB_CACHE, or in the checkout, or, where that
    is read-only, the user's.
    """
    if named := os.environ.get("VITLAB_CACHE"):
        return Path(named).expanduser().absolute()
    own, user = ROOT / "data" / "cache", platformdirs.user_cache_path("vitlab")
    return next((folder for folder in (own, user) if _writable(folder)), Path(tempfile.gettempdir(), "vitlab-cache"))


def _writable(folder: Path) -> bool:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


# ---------------------------------------------------------------- records


def environment(on: str = "auto") -> dict[str, Any]:
    """Versions, machine and commit, as recorded with every run; on: the parameter `device`."""
    return pace(on) | {
        "cores": cores(),
        "memory_gib": round(memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
    }


def pace(on: str = "auto") -> dict[str, Any]:
    """What a time that was measured here, on the device of parameter `device`, holds for."""
    kind = device(on).type
    name = torch.cuda.get_device_name() if kind == "cuda" else _cpu_name() if kind == "cpu" else kind
    return {"device": name, "threads": torch.get_num_threads(), "versions": _versions()}


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The repository's commit, marked where files differ from it; "unknown" outside a repository.

    Notebooks don't count: saved ones hold outputs, and what a run depends on is the package and its configuration.
    """
    git = ["git", "-C", str(ROOT)]
    changed = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)*.ipynb"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")


@cache
def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
