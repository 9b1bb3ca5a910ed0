"""What is known of the machine: the faster way is taken, and nothing is changed for others in the process."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor, nn

from vitlab import machine
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.machine import device, fused_attention_pays, precision
from vitlab.models.registry import build_model

CPU = torch.device("cpu")


def in_its_own_process(code: str) -> str:
    """What some code prints in a fresh process."""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


# ---------------------------------------------------------------- importing the package

SETTINGS = """
import os, torch

def settings():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": (torch.get_float32_matmul_precision(), torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "generator": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
    }

def tiny():
    return (torch.tensor(1e-38) * 1e-3).item() != 0
"""


@pytest.mark.slow
def test_importing_the_package_changes_nothing_for_others_but_numbers_too_small_for_float32() -> None:
    told = in_its_own_process(f"""{SETTINGS}
before, kept = settings(), tiny()
import vitlab.config
after = settings()
print([name for name in before if before[name] != after[name]], kept, tiny())
""")
    assert told == "[] True False"


@pytest.mark.slow
def test_numbers_too_small_for_float32_are_zero_in_every_thread() -> None:
    """Where one thread keeps them, all wait for it; a process of its own, whose threads do not exist yet."""
    product = "(torch.full((4_000_000,), 1e-38) * 1e-3).count_nonzero().item()"
    assert in_its_own_process(f"import torch, vitlab.config; print({product})") == "0"


# ---------------------------------------------------------------- device


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):
    """found(name): let torch find this accelerator, or none."""

    def let(name: str | None) -> None:
        there = torch.device(name) if name else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: there)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda")

    return let


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu"])
def test_device_that_torch_does_not_find_is_one_sentence(name: str, found) -> None:
    found(None)
    with pytest.raises(LabError) as caught:
        device(name)
    text = str(caught.value)
    assert "\n" not in text
    assert all(words in text for words in (f"device is {name}", "no GPU", "auto", "cpu"))


def test_another_device_than_the_one_asked_for_is_named(found) -> None:
    found("mps")
    with pytest.raises(LabError, match="device is cuda, but torch finds mps"):
        device("cuda")


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu"])
def test_device_that_is_asked_for_is_taken_where_torch_finds_it(name: str, found) -> None:
    found(name)
    assert device(name).type == name
    assert device("cpu") == CPU


@pytest.mark.parametrize(("there", "taken"), [(None, "cpu"), ("cuda", "cuda"), ("mps", "cpu"), ("xpu", "cpu")])
def test_auto_takes_a_cuda_gpu_and_else_the_cpu(there: str | None, taken: str, found) -> None:
    found(there)
    assert device("auto").type == device().type == taken


# ---------------------------------------------------------------- precision


class Wide(nn.Module):
    dim = 512


@pytest.mark.parametrize("pays", [True, False])
def test_precision_of_a_wide_model_follows_what_the_cpu_gains(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "bf16_pays", lambda: pays)
    gained = torch.bfloat16 if pays else torch.float32
    narrow, wide = (build_model(RunConfig(dim=dim, depth=1, heads=2), 10, 1) for dim in (16, 512))
    assert precision("auto", narrow, CPU) is torch.float32
    assert precision("auto", wide, CPU) is gained
    assert precision("auto", nn.Linear(4, 4), CPU) is gained  # a module that does not say how wide it is


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_gpu_computes_in_bf16_where_it_can(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert precision("auto", Wide(), torch.device("cuda")) is dtype


@pytest.mark.parametrize("on", ["mps", "xpu"])
def test_devices_that_nobody_has_tested_compute_in_float32(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "bf16_pays", lambda: True)
    assert precision("auto", Wide(), torch.device(on)) is torch.float32


@pytest.mark.parametrize("on", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_that_is_asked_for_is_taken(name: str, dtype: torch.dtype, on: str) -> None:
    assert precision(name, Wide(), torch.device(on)) is dtype
    assert machine.precision_name(dtype) == name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_the_dtype_it_was_given(dtype: torch.dtype) -> None:
    a = torch.ones(4, 4)
    with machine.autocast(CPU, dtype):
        assert (a @ a).dtype is dtype


@pytest.mark.parametrize(("slowdown", "pays"), [(0.5, True), (0.9, False), (2.0, False)])
def test_bf16_has_to_be_clearly_faster(slowdown: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def product(a: Tensor, _: Tensor) -> Tensor:
        nonlocal now
        now += slowdown if a.dtype is torch.bfloat16 else 1.0
        return a

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(Tensor, "__matmul__", product)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now)
    assert machine.bf16_pays.__wrapped__() is pays


def test_cpu_without_instructions_for_bf16_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(Tensor, "__matmul__", lambda *_: pytest.fail("tried"))
    assert machine.bf16_pays.__wrapped__() is False


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("tokens", "gradients", "dtype", "fused"),
    [
        (64, True, torch.float32, True),
        (65, True, torch.float32, False),  # with a class token
        (65, False, torch.float32, True),
        (44, False, torch.float32, False),  # what DynamicViT keeps of 64
        (200, True, torch.float32, True),
        (256, False, torch.bfloat16, False),
        (512, True, torch.bfloat16, True),
    ],
)
def test_the_faster_kernel_is_taken_on_a_cpu(tokens: int, gradients: bool, dtype: torch.dtype, fused: bool) -> None:
    with torch.set_grad_enabled(gradients):
        assert fused_attention_pays(torch.empty(32, 1, tokens, 8, dtype=dtype)) is fused


@pytest.mark.parametrize("tokens", [21, 31, 44])
def test_for_a_few_images_one_kernel_is_faster_than_several_calls(tokens: int) -> None:
    with torch.inference_mode():
        assert fused_attention_pays(torch.empty(1, 1, tokens, 8))
        assert not fused_attention_pays(torch.empty(64, 1, tokens, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [17, 44, 65])
def test_elsewhere_the_fused_kernel_is_the_faster_one(tokens: int, dtype: torch.dtype) -> None:
    assert fused_attention_pays(torch.empty(1, 1, tokens, 8, dtype=dtype, device="meta"))


# ---------------------------------------------------------------- memory and threads


@pytest.mark.parametrize(("taken", "calls"), [(1, [(-3, 2**30), (-1, 2**31 - 1)]), (0, [(-3, 2**30)])])
def test_glibc_that_refuses_one_threshold_is_not_given_the_other(
    taken: int, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    glibc = SimpleNamespace(mallopt=lambda *arguments: told.append(arguments) or taken)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("ctypes.CDLL", lambda name: glibc)
    machine.keep_freed_memory.__wrapped__()  # past its cache
    assert told == calls


def test_other_libraries_than_glibc_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("told"))
    machine.keep_freed_memory.__wrapped__()


@pytest.fixture
def _threads():
    """Three of torch's threads, whatever the tests before have left."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("dim", "threads"), [(16, 1), (512, 3)])
def test_narrow_models_train_in_one_thread_and_torch_is_as_before_afterwards(dim: int, threads: int) -> None:
    deterministic = torch.backends.cudnn.deterministic
    model = build_model(RunConfig(dim=dim, depth=1, heads=2), 10, 1)
    with machine.set_for_training(model):
        assert torch.get_num_threads() == threads
        assert torch.backends.cudnn.deterministic
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (3, deterministic)


@pytest.mark.usefixtures("_threads")
def test_torch_is_as_before_after_a_training_that_failed() -> None:
    deterministic = torch.backends.cudnn.deterministic
    with pytest.raises(KeyError), machine.set_for_training(build_model(RunConfig(), 10, 1)):
        raise KeyError
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (3, deterministic)


# ---------------------------------------------------------------- processes


def test_processes_are_those_of_the_launcher_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # other programs leave it there as well
    assert machine.launched_processes() == 1
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    assert machine.launched_processes() == 4


@pytest.mark.parametrize(("gpus", "processes"), [(0, 8), (1, 1), (4, 4)])
def test_each_process_needs_a_gpu_of_its_own_where_there_are_any(
    gpus: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    machine.require_gpus(processes)
    if gpus:
        with pytest.raises(LabError, match=f"processes is {gpus + 1}.* at most {gpus}, or .*CUDA_VISIBLE_DEVICES"):
            machine.require_gpus(gpus + 1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_memory_of_a_training_is_given_back() -> None:
    """Freed between blocks that stay, as a training's tensors are: it would be kept for the next step."""
    process = psutil.Process()
    machine.keep_freed_memory()
    machine.give_back_memory()  # what the tests before have left
    before = process.memory_info().rss
    pieces = [torch.ones(250_000) for _ in range(200)]  # 1 MB each
    kept = pieces[::20]
    del pieces
    held = process.memory_info().rss - before
    machine.give_back_memory()
    assert held > 150e6
    assert process.memory_info().rss - before < 60e6
    assert len(kept) == 10


def test_pace_is_of_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = machine.pace("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert machine.pace("auto") == cpu | {"device": "a GPU"}
    assert machine.pace("cpu") == cpu
    assert machine.environment("cpu")["device"] == cpu["device"]
