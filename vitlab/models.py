"""The one place that maps a name to a model."""

import ctypes
import platform
from functools import cache

import torch
from torch import nn

from vitlab.config import LabError, RunConfig
from vitlab.dynamic_vit import DynamicViT
from vitlab.linear_vit import LinearViT, LinformerViT
from vitlab.vit import ViT

# A trained Linformer's gradients hold numbers so small that a CPU treats them one by one: steps took twice as long.
# Set on import, because threads that exist already keep their setting.
torch.set_flush_denormal(True)

MODELS = {"vit": ViT, "dynamic_vit": DynamicViT, "linear_vit": LinearViT, "linformer_vit": LinformerViT}
# what only these models take
OPTIONS = {
    "dynamic_vit": ("keep_ratio",),
    "linear_vit": ("feature_map",),
    "linformer_vit": ("linformer_k", "linformer_sharing"),
}
SHAPE = ("dim", "depth", "heads", "mlp_ratio", "patch_size", "tokenizer", "pool", "positions")
SHARED = (*SHAPE, "init", "dropout", "drop_path")


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def build_model(config: RunConfig, num_classes: int, channels: int) -> nn.Module:
    """The configured model with fresh weights, the same ones for the same seed; float32, on the CPU."""
    torch.manual_seed(config.seed)
    names = SHARED + OPTIONS.get(config.model, ())
    options = {name: getattr(config, name) for name in names}
    return MODELS[config.model](image_size=config.image_size, channels=channels, num_classes=num_classes, **options)


def start_from(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy a trained ViT's weights into `model`; only the token predictors, which a ViT lacks, stay as they are."""
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise LabError(f"the run to start from has another shape: {str(error).splitlines()[-1].strip()}") from None
    if unexpected or any(not name.startswith("predictors.") for name in missing):
        raise LabError(f"the run to start from is another model: {[*missing, *unexpected][:3]} do not match")
