"""Parameters of the lab and of one run: declared once, validated before any work, errors in one sentence."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parent.parent  # relative paths in parameters are taken from here

# nano and tiny train on a CPU; small and base are the course's
PRESETS = {
    "nano": {"dim": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0},
    "tiny": {"dim": 128, "depth": 6, "heads": 4, "mlp_ratio": 2.0},
    "small": {"dim": 384, "depth": 6, "heads": 6, "mlp_ratio": 4.0},
    "base": {"dim": 512, "depth": 6, "heads": 8, "mlp_ratio": 4.0},
}
Model = Literal["vit", "dynamic_vit", "linear_vit", "linformer_vit"]
Remedy = Literal["none", "sampler", "class_weights", "both", "effective_number", "logit_adjustment"]
Share = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class LabError(Exception):
    """A fault that the user can mend; its message says what is wrong and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: the sentence is all that the reader needs."""
        return [f"{type(self).__name__}: {self}"]


class RunConfig(BaseModel):
    """Everything that decides the result of one training run. The defaults train a ViT on digits in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # data
    dataset: Literal["digits", "cifar10", "folder"] = "digits"
    data_dir: str = ""  # class folders, or where CIFAR-10 lies or goes; empty: data/
    image_size: Count = 16  # pixels a side; other images are resized
    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # of train; 0: no validation, the last epoch counts
    imbalance: Literal["none", "linear", "exponential"] = "none"
    imbalance_ratio: Annotated[float, Field(ge=1)] = 10.0  # images of the commonest class over the rarest's
    remedy: Remedy = "none"
    # augmentation, each drawn per sample
    crop: Annotated[int, Field(ge=0)] = 1  # pixels of random shift; the border is reflected
    flip: bool = False
    cutout: Share = 0.0  # side of the hidden square over the image's side
    mixup: NotNegative = 0.0  # alpha of the Beta distribution; 0: off
    cutmix: NotNegative = 0.0
    label_smoothing: Share = 0.1
    # model
    model: Model = "vit"
    preset: Literal[tuple(PRESETS)] = "nano"
    dim: Count | None = None  # None, here and in the next three: the preset's
    depth: Count | None = None
    heads: Count | None = None
    mlp_ratio: Positive | None = None
    patch_size: Count = 4
    tokenizer: Literal["patch", "conv"] = "patch"
    pool: Literal["cls", "mean"] = "cls"
    dropout: Share = 0.0
    drop_path: Share = 0.0  # stochastic depth: the last block's rate, growing linearly from 0
    keep_ratio: Ratio = 0.7  # DynamicViT: share of its tokens that each of the three stages keeps
    ratio_weight: NotNegative = 2.0  # DynamicViT's loss weights, Rao et al. 2021, section 3.4
    distill_weight: NotNegative = 0.5
    linformer_k: Count = 8  # Linformer: tokens that keys and values are projected to
    # training
    epochs: Count = 60
    steps: Count | None = None  # a budget in optimiser steps; None: epochs decides
    batch_size: Count = 64
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: Positive = 2e-3  # peak; with muon: AdamW's, for all that is not a matrix of a block
    muon_lr: Positive = 0.02  # peak, of the blocks' matrices with muon
    weight_decay: NotNegative = 0.05
    warmup: Share = 0.1  # share of all steps; then cosine
    clip: Positive = 1.0  # norm of the gradient
    ema: Share = 0.0  # decay of the averaged weights; 0: off
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    init_from: str = ""  # run directory that the weights start from; DynamicViT's teacher too

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the model's shape from the preset; YAML's yes/no must not pass for a number."""
        for name, value in values.items():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} is {value}, not a number or a word: check the value (YAML reads no as false)")
        shape = PRESETS.get(values.get("preset", cls.model_fields["preset"].default), {})
        return dict(values) | {key: value for key, value in shape.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}: choose one that does"
            )
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}: choose a number that does")
        if self.tokenizer == "conv" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"tokenizer conv needs patch_size 1, 2, 4, 8, …, got {self.patch_size}")
        if self.model == "dynamic_vit" and self.depth < 4:
            raise ValueError(f"DynamicViT's three pruning stages need depth 4 or more, got {self.depth}")
        if self.dataset == "folder" and not self.data_dir:
            raise ValueError("dataset folder needs data_dir: name the folder that holds the class folders")
        return self

    def but(self, **changes: Any) -> Self:
        """The same configuration with some values changed, validated again."""
        return parse(type(self), self.model_dump() | changes)

    def with_preset(self, preset: str) -> Self:
        return self.but(preset=preset, **PRESETS[preset])

    @property
    def num_tokens(self) -> int:
        """Patches of one image, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2


class LabConfig(RunConfig):
    """A notebook's parameters: those of its runs, and what the chapters vary. Defaults equal params/quick.yaml."""

    imbalance: Literal["none", "linear", "exponential"] = "exponential"  # of chapter 01's study; others balanced
    imbalance_ratio: Annotated[float, Field(ge=1)] = 50.0
    study_epochs: Count = 30  # of each run of the imbalance study
    study_seeds: Count = 3
    fine_tune_epochs: Count = 30  # of DynamicViT, and of the ViT that just trains on
    fine_tune_lr: Positive = 5e-4
    runs_dir: str = "runs"

    def run(self, **changes: Any) -> RunConfig:
        """Configuration of one run of this lab: balanced data unless `changes` says otherwise."""
        shared = {name: getattr(self, name) for name in RunConfig.model_fields}
        return parse(RunConfig, shared | {"imbalance": "none"} | changes)


C = TypeVar("C", bound=RunConfig)


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Validated configuration, or a LabError of one sentence a fault; a misspelt key names the nearest valid one."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise LabError("; ".join(_sentence(cls, fault) for fault in error.errors())) from None


def _sentence(cls: type[RunConfig], fault: Mapping[str, Any]) -> str:
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    name = str(fault["loc"][0])
    if fault["type"] != "extra_forbidden":
        return f"parameter {name} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
    near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
    return f"unknown parameter {name!r}: " + (f"did you mean {near[0]!r}?" if near else "see params/quick.yaml")


def load_params(path: Path, overrides: Mapping[str, Any] | None = None) -> LabConfig:
    """The profile in a YAML file with some values overridden."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise LabError(f"no params file {path}: choose one of {have or 'none, the folder is empty'}") from None
    except yaml.YAMLError as error:
        raise LabError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise LabError(f"{path} must hold 'name: value' lines")
    return parse(LabConfig, values | dict(overrides or {}))


def from_notebook(namespace: dict[str, Any]) -> LabConfig:
    """Configuration from a notebook's globals: its parameters cell, and what papermill injected after it.

    Every public name that holds a plain value counts as a parameter, so a misspelt one is caught. When the cell is
    run again later, names that the notebook itself made since are passed over unless they resemble a parameter.
    """
    plain = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out") and isinstance(value, str | int | float | None)
    }
    if namespace.setdefault("_first_parameters", frozenset(plain)) != frozenset(plain):
        known = list(LabConfig.model_fields)
        plain = {n: v for n, v in plain.items() if difflib.get_close_matches(n, known, n=1, cutoff=0.7)}
    return parse(LabConfig, plain)


def absolute(path: str) -> Path:
    """A path of the parameters: relative ones are taken from the repository's root, ~ is the home directory."""
    return (ROOT / Path(path).expanduser()).resolve()
