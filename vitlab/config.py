"""Parameters: what there is, with its meaning, validated before any work; errors in one sentence.

`Recipe` says how any model is trained, `RunConfig` adds data and model and so decides a run, `LabConfig` is what a
reader of the notebooks sets. Where values come from is in `parameters`.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vitlab.errors import LabError
from vitlab.machine import memory
from vitlab.models.registry import MODELS
from vitlab.texts import nearest, unshowable

PRESETS = {  # nano and tiny train on a CPU; small and base are the course's
    "nano": {"dim": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0},
    "tiny": {"dim": 128, "depth": 6, "heads": 4, "mlp_ratio": 2.0},
    "small": {"dim": 384, "depth": 6, "heads": 6, "mlp_ratio": 4.0},
    "base": {"dim": 512, "depth": 6, "heads": 8, "mlp_ratio": 4.0},
}
Preset = Literal["nano", "tiny", "small", "base"]
Tokenizer = Literal["patch", "conv", "light"]
Remedy = Literal["none", "sampler", "class_weights", "both", "effective_number", "drw", "ldam_drw", "logit_adjustment"]
POST_HOC = "post_hoc"  # the remedy that trains nothing: `none`'s logits are adjusted
STUDIED = (*get_args(Remedy), POST_HOC)  # in chapter 01
BALANCED = "balanced"  # its upper reference: no imbalance, no remedy
Imbalance = Literal["none", "linear", "exponential"]
ImbalanceOrder = Literal["classes", "random"]
Share = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
AtLeastOne = Annotated[float, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Threads = Annotated[int, Field(ge=0, le=256)]
Seeds = Annotated[int, Field(ge=1, le=1000)]


def _parted(value: Any, mark: str = ",") -> Any:
    """A list may be written as a text, or as the number that it holds alone."""
    if isinstance(value, str):
        return [part for word in value.strip("[] ").split(mark) if (part := word.strip(" '\""))]
    return [value] if isinstance(value, int) else value


Words, Names = BeforeValidator(_parted), BeforeValidator(lambda value: _parted(value, ";"))  # of runs: may hold commas
Blocks = Annotated[list[Count], Words]


class Training(BaseModel):
    """How a model is trained: what all runs of a lab have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # augmentation, each drawn per sample
    crop: CountOrZero = 1  # pixels of random shift; the border is reflected
    flip: bool = False  # mirror half of the images left to right
    cutout: Share = 0.0  # side of the hidden square, as a share of the image's side; 0: off
    mixup: NotNegative = 0.0  # alpha of MixUp's Beta distribution; 0: off
    cutmix: NotNegative = 0.0  # the same for CutMix
    label_smoothing: Share = 0.1  # share of the target spread over all classes
    # budget
    epochs: Count = 10  # of chapters 02 and 04
    minutes: NotNegative = 0.0  # budget by the clock instead of epochs, and the learning rate follows it; 0: off
    patience: CountOrZero = 0  # epochs without a better validation accuracy that end training; 0: off
    batch_size: Count = 32  # images a step, of all processes together
    accumulate: Count = 1  # pieces that a batch is taken in, where it does not fit into memory as a whole
    start_size: CountOrZero = 0  # pixels a side that training starts with, growing; 0: image_size
    grow: Ratio = 0.7  # share of training until images have grown to image_size
    # optimisation
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"  # adamw, sgd, or muon for hidden matrices, adamw for the rest
    lr: Positive = 2e-3  # peak learning rate (with muon: AdamW's)
    muon_lr: Positive = 0.02  # Muon's peak learning rate
    weight_decay: NotNegative = 0.05  # of matrices and kernels alone
    warmup: Share = 0.1  # share of training in which the learning rate rises to its peak
    hold: Share = 0.0  # share of training after which it falls
    schedule: Literal["cosine", "linear"] = "cosine"  # cosine or linear: how the learning rate falls, to zero
    clip: Positive = 1.0  # largest norm of the gradient
    ema: Share = 0.0  # decay of the averaged weights; 0: off
    # machine
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"  # auto: cuda if there is one, else cpu; mps: untested
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it pays; old GPUs fp16
    num_workers: Threads = 2  # threads that read images ahead where they do not fit into memory
    pin_memory: bool = True  # these images then reach a GPU by a faster way
    # torch.compile; auto: on a CPU, where a trial says that the run will gain time
    compile: Literal["auto", True, False] = "auto"
    channels_last: bool = False  # memory layout of images: faster on some CPUs and GPUs
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of the splits, the weights and every step

    @property
    def size_unit(self) -> int:
        """Pixels by which images may grow while training."""
        return 1

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} must not exceed batch_size {self.batch_size}")
        return self

    def __repr__(self) -> str:
        """What differs from the defaults alone, in a line."""
        changed = self.model_dump(exclude_defaults=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    __str__ = __repr__

    def replace(self, **changes: Any) -> Self:
        """The same configuration with some values replaced, validated again; a preset brings its shape."""
        return parse(type(self), self.model_dump() | _with_shape(changes))


class Recipe(Training):
    """How one model is trained: all that `fit` and `step` read."""

    remedy: Remedy = "none"  # for imbalance
    steps: Count | None = None  # a budget in optimiser steps; None: epochs decides
    # best or last: the epoch whose weights a run ends with, that of the best validation accuracy or the last one
    keep_epoch: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _check_recipe(self) -> Self:
        if self.patience and self.keep_epoch == "last":
            raise ValueError(f"patience {self.patience} waits for a best epoch, keep_epoch last for none: set one")
        return self

    @property
    def budget(self) -> str:
        """How long this run may train, in words."""
        longest = f"{self.minutes:g} minute" if self.minutes else f"{self.epochs} epoch"
        longest = f"{self.steps:,} step" if self.steps else longest
        longest += "" if longest.startswith("1 ") else "s"
        return f"up to {longest}" if self.patience else longest


class Common(Training):
    """What a run and a whole lab have in common. The defaults train a ViT on digits in seconds."""

    # data
    dataset: Literal["digits", "cifar10", "folder"] = "digits"  # digits is built in, cifar10 downloaded, folder yours
    data_dir: str = ""  # class folders, or where CIFAR-10 lies or goes; empty: data/
    image_size: Count = 16  # pixels a side; other images are resized
    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # validation images a class over the rarest's; 0: none
    # model
    preset: Preset = "nano"  # size: nano, tiny, small or base
    dim: Count | None = None  # width of a token; None, here and below: the preset's
    depth: Count | None = None  # blocks
    heads: Count | None = None  # of attention
    mlp_ratio: Positive | None = None  # hidden width of a block's MLP over dim
    patch_size: Count = 4  # pixels a side of what becomes one token
    tokenizer: Tokenizer = "patch"  # patch, conv, or light, a third of conv's work: how patches become tokens
    pool: Literal["cls", "mean"] = "cls"  # cls or mean: the class token is classified, or the mean of the patches
    positions: Literal["learned", "sincos"] = "learned"  # learned, or sincos: fixed sines and cosines
    init: Literal["xavier", "small"] = "xavier"  # small, deviation 0.02, suits muon: where Q, K, V and MLPs begin
    dropout: Share = 0.0  # rate, after the embedding, attention and MLP
    drop_path: Share = 0.0  # stochastic depth: the last block's rate, growing linearly from 0
    keep_ratio: Ratio = 0.7  # fewer tokens, chapter 03: share of its tokens that each of the stages keeps
    stages: Blocks = []  # blocks, counted from 0, that tokens go before; none: at 1/4, 1/2 and 3/4 of the depth
    salience: Literal["attention", "values", "norm"] = "attention"  # Top-K and EViT: what shows that a token matters
    proportional: bool = True  # EViT and ToMe: attention counts a merged token as often as the patches in it
    ratio_weight: NotNegative = 2.0  # DynamicViT: weight of the ratio loss (Rao et al. 2021, section 3.4)
    distill_weight: NotNegative = 0.5  # DynamicViT: weight of both distillation losses
    backbone_rate: Ratio = 0.01  # DynamicViT: rate of what comes from the ViT over that of the predictors (lr)
    frozen: Share = 0.17  # DynamicViT: share of its training before which what comes from the ViT stands still
    settle: Annotated[float, Field(ge=0, le=1)] = 0.0  # DynamicViT: share at the end that draws no tokens, but the best
    feature_map: Literal["elu", "relu"] = "elu"  # elu or relu: of kernelised attention, elu(x) + 1 or relu(x)
    # identity, elu or relu: of InLine attention; where it equals feature_map, only the normalisation differs
    inline_map: Literal["identity", "elu", "relu"] = "identity"
    linformer_k: Count = 8  # Linformer: tokens that keys and values are projected to
    # headwise, key_value or layerwise: which heads and layers share Linformer's E and F
    linformer_sharing: Literal["headwise", "key_value", "layerwise"] = "headwise"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the model's shape from the preset; YAML's yes/no is no number, nothing an empty list or word."""
        values = {name: str(v) if cls.is_text(name) and isinstance(v, int | float) else v for name, v in values.items()}
        for name, value in values.items():
            kind = getattr(cls.model_fields.get(name), "annotation", bool)
            if value is None and (get_origin(kind) is list or "" in get_args(kind)):
                values[name] = [] if get_origin(kind) is list else ""
            if isinstance(value, bool) and kind is not bool and True not in get_args(kind):
                raise ValueError(f"{name} is {value}, not a number or a word: check the value (YAML reads no as false)")
        preset = values.get("preset", cls.model_fields["preset"].default)
        shape = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return values | {key: value for key, value in shape.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}: change one")
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}: choose a number that does")
        if self.start_size % self.patch_size or self.start_size > self.image_size:
            raise ValueError(
                f"start_size {self.start_size} must be a multiple of patch_size {self.patch_size} and not exceed "
                f"image_size {self.image_size}"
            )
        if self.positions == "sincos" and self.dim % 4:
            raise ValueError(f"positions sincos needs a dim that 4 divides, got {self.dim}")
        if self.crop >= self.image_size:
            raise ValueError(f"crop {self.crop} must be smaller than image_size {self.image_size}")
        if self.tokenizer != "patch" and self.patch_size & (self.patch_size - 1):
            need = f"needs patch_size 1, 2, 4, 8, …, got {self.patch_size}"
            raise ValueError(f"tokenizer {self.tokenizer}, which chapter 02 compares, {need}")
        if (self.start_size or self.image_size) < 3 and not self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"image_size {self.image_size} (or start_size) is too small for the 3×3 kernels of tokenizer conv, "
                "which chapter 02 compares: choose 3 or more"
            )
        if self.dataset == "folder" and not self.data_dir:
            raise ValueError("dataset folder needs data_dir: name the folder that holds the class folders")
        if self.dataset == "digits" and self.data_dir:
            raise ValueError(
                "data_dir is given, but dataset is digits, which needs none: choose dataset=folder for class folders "
                "(or cifar10), or leave data_dir empty"
            )
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        """Shapes that no machine holds are refused here, where their numbers can still be named."""
        weights = self.depth * self.dim**2 * (4 + 2 * self.mlp_ratio) + self.num_tokens * self.dim
        if 16 * weights > (have := memory()):  # with gradients and AdamW's averages
            raise ValueError(
                f"dim {self.dim}, depth {self.depth}, mlp_ratio {self.mlp_ratio:g} and image_size {self.image_size} "
                f"make {weights:.2g} weights, more than {have / 2**30:.0f} GiB of memory can train: lower one of them"
            )
        if 4 * self.heads * self.num_tokens**2 > have:
            raise ValueError(
                f"image_size {self.image_size} in patches of {self.patch_size} makes {self.num_tokens:,} tokens, whose "
                "attention fits into no memory here: lower image_size or raise patch_size"
            )
        return self

    @classmethod
    def is_text(cls, name: str) -> bool:
        """Whether a parameter is a text, whatever it looks like."""
        return name in cls.model_fields and cls.model_fields[name].annotation is str

    @property
    def num_tokens(self) -> int:
        """Patches of one image, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def size_unit(self) -> int:
        return self.patch_size


class RunConfig(Common, Recipe):
    """Everything that decides the result of one training run."""

    model: str = "vit"  # a name of models.registry
    init_from: str = ""  # run directory that the weights start from; DynamicViT's teacher too
    imbalance: Imbalance = "none"  # none, linear or exponential: class sizes in training
    imbalance_ratio: AtLeastOne = 10.0  # images of the commonest class over the rarest's
    imbalance_order: ImbalanceOrder = "classes"  # random: the seed draws which classes are rare; classes: the last ones

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.model not in MODELS:
            near = nearest(self.model, MODELS, "vitlab/models/registry.py")
            raise ValueError(f"unknown model {self.model!r}: {near}")
        MODELS[self.model].check(self)
        return self


class LabConfig(Common):
    """A notebook's parameters: what its runs share, and what the chapters vary. Defaults equal params/quick.yaml."""

    study_imbalance: Imbalance = "exponential"  # none, linear or exponential: class sizes of chapter 01's study
    study_ratio: AtLeastOne = 50.0  # images of the commonest class over the rarest's, in that study
    study_order: ImbalanceOrder = "random"  # random: the seed draws which classes are rare; classes: the last ones
    study_more: str = ""  # further class sizes of that study, as "linear 10, exponential 100"
    study_more_seeds: Seeds = 1  # seeds of each run of these
    study_remedies: str = ""  # remedies of that study, separated by commas; empty: all
    study_tokenizer: Tokenizer = "patch"  # patch, conv or light: of the ViT of that study
    study_epochs: Count = 8  # of each run of the imbalance study
    study_cutout: Share = 0.0  # cutout of that study; 0: as cutout
    study_seeds: Seeds = 3  # seeds of each run of that study
    seeds: Seeds = 1  # seeds of each run of chapters 02 to 04, from seed on
    repeated: Annotated[list[str], Names] = []  # runs that seeds repeats, as "ViT; ToMe"; empty: all
    tokenizers: Annotated[list[Tokenizer], Words] = ["patch", "conv"]  # that chapter 02 compares
    sizes: Annotated[list[Preset], Words] = []  # further presets that chapter 02 trains, as small beside base
    ablations: Annotated[list[str], Words] = []  # more of chapter 04: injective_vit, local_linear_vit, local_vit
    equal_cost: Annotated[list[str], Words] = ["dynamic_vit"]  # models beside which stand ViTs that cost as little
    long_epochs: CountOrZero = 0  # of the longer training of the convolutional tokenizer and of ResNet-20; 0: none
    long_cutout: Share = 0.25  # cutout in that training, which sees the images often
    long_preset: Literal["", Preset] = ""  # a larger ViT, trained as long with conv and patch; empty or no larger: none
    backbone: Literal["conv", "patch"] = "conv"  # tokenizer of the ViT that chapter 03 goes on from, of the longest run
    fine_tune_epochs: Count = 2  # of every reduction of tokens, and of the ViT that is fine-tuned without one
    fine_tune_lr: Positive = 3e-4  # peak learning rate of these; DynamicViT: see backbone_rate
    fine_tune_ema: Share = 0.0  # decay of their averaged weights; 0: as ema
    processes: Count = 1  # processes that train one run together, one a GPU (Accelerate)
    cluster: str = ""  # address of a Ray cluster whose machines train the runs: auto, HOST:6379 or ray://HOST:10001
    runs_dir: Annotated[str, Field(min_length=1)] = "runs"  # where runs are kept, and found again
    measurement: CountOrZero = 0  # another number measures all times anew
    rounds: Count = 3  # in which all that a table compares is timed in turns, at least; more where they disagree
    extra_runs: str = ""  # other runs' directories, separated by commas, that chapter 06 compares as well
    notes: str = ""  # what a reader of the report has to know beside its numbers
    data_name: str = ""  # what the report calls the data; empty: the data set's or the folder's name

    @model_validator(mode="after")
    def _check_lab(self) -> Self:
        if 0 < self.long_epochs <= self.epochs and not self.minutes:
            raise ValueError(f"long_epochs {self.long_epochs} must exceed epochs {self.epochs}, or be 0")
        asked = [name for name, row in MODELS.items() if row.asked]
        vits = [n for n, row in MODELS.items() if row.is_vit and row.chapter and n not in {*asked} - {*self.ablations}]
        for parameter, known in (("ablations", asked), ("equal_cost", vits)):
            if wrong := [name for name in getattr(self, parameter) if name not in known]:
                raise ValueError(f"{parameter} names {wrong[0]!r}: choose of {', '.join(known)}")
        if self.long_epochs and "conv" not in (self.tokenizer, *self.tokenizers):
            raise ValueError("long_epochs trains the conv tokenizer for longer: name it in tokenizers, or set it to 0")
        if self.backbone not in (self.tokenizer, *self.tokenizers):
            raise ValueError(f"backbone {self.backbone} is trained by no chapter: name it in tokenizers")
        if self.preset in self.sizes:
            raise ValueError(f"sizes names {self.preset}, which is the preset itself: take it out")
        for name in ("notes", "data_name"):
            if bad := unshowable(getattr(self, name)):
                raise ValueError(f"{name} holds {bad[0]!a}, which neither HTML nor PDF can show: take it out")
        if self.seed + (most := max(self.seeds, self.study_seeds, self.study_more_seeds)) > 2**63:
            raise ValueError(f"seed {self.seed} leaves no room for {most} of them: lower it below 2**62")
        if self.cluster and self.processes > 1:
            raise ValueError(f"a run on a cluster takes one process, not {self.processes}: set processes or cluster")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared evenly by {self.processes} processes")
        _ = self.study_shapes, self.remedies
        return self

    @property
    def study_shapes(self) -> list[tuple[Imbalance, float]]:
        """Class sizes of the study: those that its conclusions speak of, then those of `study_more`."""
        shapes = [(self.study_imbalance, self.study_ratio)]
        for text in _parted(self.study_more):
            found = re.fullmatch(r"(linear|exponential) +(\d+(?:\.\d+)?)", text)
            if not found or float(found[2]) < 1:
                raise ValueError(f'study_more has {text!r}: write it as "linear 10, exponential 100"')
            shapes.append((found[1], float(found[2])))
        return list(dict.fromkeys(shapes))

    @property
    def remedies(self) -> list[str]:
        """The study's remedies, `none` first, which the others are measured against."""
        asked = _parted(self.study_remedies) or STUDIED
        if wrong := next((name for name in asked if name not in STUDIED), None):
            raise ValueError(f"study_remedies has {wrong!r}: {nearest(wrong, dict.fromkeys(STUDIED), 'the chapter')}")
        if asked == ["none"]:
            raise ValueError("study_remedies has none alone: name the remedies to compare it with, or leave it empty")
        return [name for name in STUDIED if name in asked or name == "none"]

    def run(self, **changes: Any) -> RunConfig:
        """Configuration of one run of this lab, with `changes`."""
        return parse(RunConfig, {name: getattr(self, name) for name in Common.model_fields} | _with_shape(changes))

    def recipe(self, **changes: Any) -> Recipe:
        """How this lab trains a module of your own, with `changes`; images grow only where these say so."""
        own = {name: getattr(self, name) for name in Training.model_fields.keys() - {"start_size"}}
        self.run(**changes)  # a recipe alone does not know the size of the images, which a crop may not exceed
        return parse(Recipe, own | changes)

    @classmethod
    def help(cls) -> dict[str, str]:
        """Parameter -> what it means: the comments beside, or above, the fields of this file."""
        source = "".join(inspect.getsource(part) for part in (Training, Common, cls))
        found = re.findall(r"^(?:    # (.*)\n)?    (\w+): .*? = .*?(?:  # (.*))?$", source, re.MULTILINE)
        return {name: beside or above for above, name, beside in found if name in cls.model_fields}


def _with_shape(changes: Mapping[str, Any]) -> dict[str, Any]:
    return PRESETS.get(str(changes.get("preset")), {}) | changes


C = TypeVar("C", bound=Training)


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Validated configuration, or a LabError of one sentence a fault; a misspelt key names the nearest valid one."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise LabError("; ".join(_sentence(cls, fault) for fault in error.errors())) from None


def _sentence(cls: type[Training], fault: Mapping[str, Any]) -> str:
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    name = str(fault["loc"][0])
    if fault["type"] != "extra_forbidden":
        return f"parameter {name} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
    return f"unknown parameter {name!r}: {nearest(name, cls.model_fields, 'vitlab/config.py')}"
