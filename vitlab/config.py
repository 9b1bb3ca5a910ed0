"""Parameters of the lab and of one run: declared once, validated before any work, errors in one sentence."""

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
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
Imbalance = Literal["none", "linear", "exponential"]
ImbalanceOrder = Literal["classes", "random"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "sgd", "muon"]
Sharing = Literal["headwise", "key_value", "layerwise"]
Share = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

RESEMBLES = 0.85  # share of letters in common from which a name of a notebook counts as a parameter misspelt


class LabError(Exception):
    """A fault that the user can mend; its message says what is wrong and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: the sentence is all that the reader needs."""
        return [f"{type(self).__name__}: {self}"]


class Common(BaseModel):
    """What a run and a whole lab have in common. The defaults train a ViT on digits in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # data
    dataset: Literal["digits", "cifar10", "folder"] = "digits"  # digits is built in, cifar10 downloaded, folder yours
    data_dir: str = ""  # class folders, or where CIFAR-10 lies or goes; empty: data/
    image_size: Count = 16  # pixels a side; other images are resized
    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # validation images a class over the rarest's; 0: none
    imbalance: Imbalance = "none"  # none, linear or exponential: class sizes in training
    imbalance_ratio: Annotated[float, Field(ge=1)] = 10.0  # images of the commonest class over the rarest's
    imbalance_order: ImbalanceOrder = "classes"  # classes: the last ones are rare; random: the seed draws which
    # augmentation, each drawn per sample
    crop: Annotated[int, Field(ge=0)] = 1  # pixels of random shift; the border is reflected
    flip: bool = False  # mirror half of the images left to right
    cutout: Share = 0.0  # side of the hidden square, as a share of the image's side; 0: off
    mixup: NotNegative = 0.0  # alpha of MixUp's Beta distribution; 0: off
    cutmix: NotNegative = 0.0  # the same for CutMix
    label_smoothing: Share = 0.1  # share of the target spread over all classes
    # model
    preset: Literal[tuple(PRESETS)] = "nano"  # size: nano, tiny, small or base
    dim: Count | None = None  # width of a token; None, here and below: the preset's
    depth: Count | None = None  # blocks
    heads: Count | None = None  # of attention
    mlp_ratio: Positive | None = None  # hidden width of a block's MLP over dim
    patch_size: Count = 4  # pixels a side of what becomes one token
    tokenizer: Literal["patch", "conv"] = "patch"  # patch or conv: how patches become tokens; chapter 02 trains both
    pool: Literal["cls", "mean"] = "cls"  # cls or mean: the class token is classified, or the mean of the patches
    positions: Literal["learned", "sincos"] = "learned"  # learned, or sincos: fixed sines and cosines
    init: Literal["xavier", "small"] = "xavier"  # small, deviation 0.02, suits muon: where Q, K, V and MLPs begin
    dropout: Share = 0.0  # rate, after the embedding, attention and MLP
    drop_path: Share = 0.0  # stochastic depth: the last block's rate, growing linearly from 0
    keep_ratio: Ratio = 0.7  # DynamicViT: share of its tokens that each of the three stages keeps
    ratio_weight: NotNegative = 2.0  # DynamicViT: weight of the ratio loss (Rao et al. 2021, section 3.4)
    distill_weight: NotNegative = 0.5  # of both distillation losses
    feature_map: Literal["elu", "relu"] = "elu"  # elu or relu: of kernelised attention, elu(x) + 1 or relu(x)
    linformer_k: Count = 8  # Linformer: tokens that keys and values are projected to
    linformer_sharing: Sharing = "headwise"  # headwise, key_value or layerwise: which heads and layers share E and F
    # training
    epochs: Count = 25  # of chapters 02 and 04
    minutes: NotNegative = 0.0  # budget by the clock instead of epochs, and the learning rate follows it; 0: off
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better validation accuracy that end training; 0: off
    batch_size: Count = 64  # images a step, of all processes together
    accumulate: Count = 1  # pieces that a batch is taken in, where it does not fit into memory as a whole
    optimizer: Optimizer = "adamw"  # adamw, sgd, or muon for the hidden layers' matrices with adamw for the rest
    lr: Positive = 2e-3  # peak learning rate (with muon: AdamW's)
    muon_lr: Positive = 0.02  # Muon's peak learning rate
    weight_decay: NotNegative = 0.05  # of matrices and kernels alone
    warmup: Share = 0.1  # share of training in which the learning rate rises to its peak
    hold: Share = 0.0  # share of training after which it falls
    schedule: Literal["cosine", "linear"] = "cosine"  # cosine or linear: how the learning rate falls, to zero
    start_size: Annotated[int, Field(ge=0)] = 0  # pixels a side that training starts with, growing; 0: image_size
    grow: Ratio = 0.7  # share of training until images have grown to image_size
    clip: Positive = 1.0  # largest norm of the gradient
    ema: Share = 0.0  # decay of the averaged weights; 0: off
    precision: Precision = "auto"  # auto, fp32, bf16 or fp16; auto: bf16 where the device gains from it
    num_workers: Annotated[int, Field(ge=0)] = 2  # processes that read images ahead where they do not fit into memory
    pin_memory: bool = True  # these images then reach a GPU by a faster way
    compile: bool = False  # torch.compile: pays on a GPU and in long runs
    channels_last: bool = False  # memory layout of images: faster on some CPUs and GPUs
    seed: Annotated[int, Field(ge=0)] = 0  # of the splits, the weights and every step

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the model's shape from the preset; YAML's yes/no must not pass for a number."""
        for name, value in values.items():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} is {value}, not a number or a word: check the value (YAML reads no as false)")
        preset = values.get("preset", cls.model_fields["preset"].default)
        shape = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return dict(values) | {key: value for key, value in shape.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}: choose one that does"
            )
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}: choose a number that does")
        if self.start_size % self.patch_size or self.start_size > self.image_size:
            raise ValueError(
                f"start_size {self.start_size} must be a multiple of patch_size {self.patch_size} and not exceed "
                f"image_size {self.image_size}"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} must not exceed batch_size {self.batch_size}")
        if self.positions == "sincos" and self.dim % 4:
            raise ValueError(f"positions sincos needs a dim that 4 divides, got {self.dim}")
        if self.crop >= self.image_size:
            raise ValueError(f"crop {self.crop} must be smaller than image_size {self.image_size}")
        if self.tokenizer == "conv" and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"tokenizer conv, which chapter 02 compares, needs patch_size 1, 2, 4, 8, …, got {self.patch_size}"
            )
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


class RunConfig(Common):
    """Everything that decides the result of one training run."""

    model: Model = "vit"
    remedy: Remedy = "none"  # for imbalance
    steps: Count | None = None  # a budget in optimiser steps; None: epochs decides
    init_from: str = ""  # run directory that the weights start from; DynamicViT's teacher too

    @property
    def budget(self) -> str:
        """How long this run may train, in words."""
        longest = f"{self.steps:,} steps" if self.steps else f"{self.epochs} epochs"
        longest = f"{self.minutes:g} minutes" if self.minutes and not self.steps else longest
        return f"up to {longest}" if self.patience else longest

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if self.model == "dynamic_vit" and self.depth < 4:
            raise ValueError(f"DynamicViT's three pruning stages need depth 4 or more, got {self.depth}")
        if self.model == "dynamic_vit" and (self.dim < 4 or self.dim % 2):
            raise ValueError(f"DynamicViT's predictors need an even dim of 4 or more, got {self.dim}")
        if self.model == "linformer_vit" and self.linformer_k > self.num_tokens:
            raise ValueError(f"linformer_k {self.linformer_k} must not exceed the {self.num_tokens} patches")
        return self


class LabConfig(Common):
    """A notebook's parameters: what its runs share, and what the chapters vary. Defaults equal params/quick.yaml."""

    imbalance: Imbalance = "exponential"  # none, linear or exponential: class sizes of chapter 01's study
    imbalance_ratio: Annotated[float, Field(ge=1)] = 50.0  # images of the commonest class over the rarest's
    study_epochs: Count = 15  # of each run of the imbalance study
    study_seeds: Count = 3  # seeds of each run of that study
    long_epochs: Annotated[int, Field(ge=0)] = 0  # of the convolutional tokenizer's longer training; 0: there is none
    long_cutout: Share = 0.25  # cutout in that training, which sees the images often
    fine_tune_epochs: Count = 12  # of DynamicViT, and of the ViT that is fine-tuned without pruning
    fine_tune_lr: Positive = 3e-4  # peak learning rate of these two
    processes: Count = 1  # processes that train one run together, one a GPU (Accelerate)
    runs_dir: str = "runs"  # where runs are kept, and found again
    extra_runs: str = ""  # other runs' directories, separated by commas, that chapter 06 compares as well
    notes: str = ""  # what a reader of the report has to know beside its numbers
    data_name: str = ""  # what the report calls the data; empty: the data set's or the folder's name

    @model_validator(mode="after")
    def _check_lab(self) -> Self:
        if 0 < self.long_epochs <= self.epochs and not self.minutes:
            raise ValueError(f"long_epochs {self.long_epochs} must exceed epochs {self.epochs}, or be 0")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared evenly by {self.processes} processes")
        return self

    def run(self, **changes: Any) -> RunConfig:
        """Configuration of one run of this lab: balanced data unless `changes` says otherwise."""
        shared = {name: getattr(self, name) for name in Common.model_fields}
        return parse(RunConfig, shared | {"imbalance": "none"} | changes)

    @classmethod
    def help(cls) -> dict[str, str]:
        """Parameter -> what it means: the comments beside the fields of this file."""
        lines = (inspect.getsource(Common) + inspect.getsource(cls)).splitlines()
        found = (re.match(r"    (\w+): .*?  # (.*)", line) for line in lines)
        return {match[1]: match[2] for match in found if match}


C = TypeVar("C", bound=Common)


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Validated configuration, or a LabError of one sentence a fault; a misspelt key names the nearest valid one."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise LabError("; ".join(_sentence(cls, fault) for fault in error.errors())) from None


def _sentence(cls: type[Common], fault: Mapping[str, Any]) -> str:
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    name = str(fault["loc"][0])
    if fault["type"] != "extra_forbidden":
        return f"parameter {name} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
    near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
    return f"unknown parameter {name!r}: " + (f"did you mean {near[0]!r}?" if near else "all are in vitlab/config.py")


def load_params(path: Path, overrides: Mapping[str, Any] | None = None) -> LabConfig:
    """The profile in a YAML file with some values overridden."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise LabError(f"no params file {path}: choose one of {have or 'none, the folder is empty'}") from None
    except OSError as error:
        raise LabError(f"cannot read {path} ({error.strerror}): name a params file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LabError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise LabError(f"{path} must hold 'name: value' lines")
    return parse(LabConfig, values | dict(overrides or {}))


def add_overrides(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Give a command the options --data and --set; the function returned reads the parameters out of its arguments."""
    parser.add_argument("--data", default="", help="folder of class folders, instead of the profile's data (DATA=…)")
    parser.add_argument(
        "--set", nargs="*", default=[], type=_override, metavar="name=value", help="parameters (SET='…')"
    )

    def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
        folder = {"dataset": "folder", "data_dir": str(Path(arguments.data).expanduser().resolve())}
        return dict(arguments.set) | (folder if arguments.data else {})

    return overrides


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"the value of {text!r} is not valid YAML") from None


def from_notebook(namespace: dict[str, Any]) -> LabConfig:
    """Configuration from a notebook's globals: its parameters cell, and what papermill injected after it.

    The first time, every public name that holds a plain value counts as a parameter, so a misspelt one is caught.
    When the cell is run again, names that the notebook itself made since are passed over unless they resemble one.
    """
    fields, first = LabConfig.model_fields, namespace.get("_parameters")
    given = {
        name: value
        for name, value in namespace.items()
        if name in fields or (isinstance(value, str | int | float | None) and not name.startswith("_"))
    }
    if first is not None:
        known = [*fields, *first]
        given = {n: value for n, value in given.items() if difflib.get_close_matches(n, known, n=1, cutoff=RESEMBLES)}
    try:
        config = parse(LabConfig, given)
    except LabError as error:
        raise LabError(f"{error} (mend it, then restart the kernel)") from None
    namespace["_parameters"] = frozenset(given)
    return config


def absolute(path: str) -> Path:
    """A path of the parameters: relative ones are taken from the repository's root, ~ is the home directory."""
    return (ROOT / Path(path).expanduser()).resolve()
