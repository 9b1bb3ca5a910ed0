"""The one place that maps a name to a model: a new one is a file and a row here (CONTRIBUTING.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitlab.errors import LabError
from vitlab.models import dynamic_vit, inline_vit, linear_vit, reduce, resnet
from vitlab.models.heads import with_cosine_head
from vitlab.models.vit import ViT

if TYPE_CHECKING:
    from vitlab.config import RunConfig

SHAPE = ("dim", "depth", "heads", "mlp_ratio", "patch_size", "tokenizer", "pool", "positions")
SHARED = ("image_size", *SHAPE, "init", "dropout", "drop_path")


@dataclass(frozen=True)
class Row:
    """What the lab knows of a model.

    build: called with channels, num_classes and the parameters of `shared` and `options`; returns a module that maps
    images to logits. Its classmethod `macs(config, channels, num_classes)`, if it has one, is the formula of its cost.
    title: what tables and figures call it. options: the parameters that only such models read. chapter: 02 and 04 train
    it from random weights, beside the ViT and beside the other attentions, 03 on from the ViT's weights, "" none does.
    attention: what chapter 05 calls its attention when it measures its growth with the number of tokens. check: raises
    ValueError, a sentence, for a configuration that it can't be built with. shared: which of the parameters that all
    models may read it does read. asked: chapter 04 trains it only where the parameter ablations names it.
    """

    build: type[nn.Module]
    title: str
    options: tuple[str, ...] = ()
    chapter: str = ""
    attention: str = ""
    check: Callable[["RunConfig"], None] = lambda config: None
    shared: tuple[str, ...] = SHARED
    asked: bool = False

    @property
    def is_vit(self) -> bool:
        """Whether it has the shape that the presets give, and not one of its own."""
        return "dim" in self.shared

    @property
    def from_outside(self) -> bool:
        """Whether a reader has put it here, in a notebook: no other process knows it."""
        return not self.build.__module__.startswith("vitlab.")


MODELS = {
    "vit": Row(ViT, "ViT", attention="softmax"),
    "dynamic_vit": Row(
        dynamic_vit.DynamicViT,
        "DynamicViT",
        options=("keep_ratio", "stages", "ratio_weight", "distill_weight", "backbone_rate", "frozen", "settle"),
        chapter="03",
        check=dynamic_vit.check,
    ),
    "distilled_vit": Row(dynamic_vit.DistilledViT, "ViT, distilled", ("distill_weight",)),
    "random_vit": Row(reduce.RandomViT, "Random tokens", ("keep_ratio", "stages"), "03", check=reduce.check),
    "topk_vit": Row(reduce.TopKViT, "Top-K", ("keep_ratio", "stages", "salience"), "03", check=reduce.check),
    "evit": Row(reduce.EViT, "EViT", ("keep_ratio", "stages", "salience", "proportional"), "03", check=reduce.check),
    "tome_vit": Row(reduce.ToMeViT, "ToMe", ("keep_ratio", "stages", "proportional"), "03", check=reduce.check),
    "linear_vit": Row(linear_vit.LinearViT, "Linear ViT", ("feature_map",), "04", "kernelised"),
    "linformer_vit": Row(
        linear_vit.LinformerViT,
        "Linformer ViT",
        ("linformer_k", "linformer_sharing"),
        "04",
        "Linformer",
        check=linear_vit.check_linformer,
    ),
    "inline_vit": Row(inline_vit.InLineViT, "InLine ViT", ("inline_map",), "04", "InLine"),
    "injective_vit": Row(
        inline_vit.InjectiveViT, "InLine ViT without its local term", ("inline_map",), "04", asked=True
    ),
    "local_linear_vit": Row(
        inline_vit.LocalLinearViT, "Linear ViT with the local term", ("feature_map",), "04", asked=True
    ),
    "local_vit": Row(inline_vit.LocalViT, "ViT with the local term", (), "04", asked=True),
    "resnet20": Row(resnet.ResNet20, "ResNet-20", chapter="02", shared=()),
}


def build_model(config: "RunConfig", num_classes: int, channels: int) -> nn.Module:
    """The configured model with fresh weights, the same ones for the same seed; float32, on the CPU.

    With the remedy LDAM its logits are cosines. LabError for a row with an option that is no parameter.
    """
    torch.manual_seed(config.seed)
    row = MODELS[config.model]
    if unknown := [name for name in row.shared + row.options if not hasattr(config, name)]:
        raise LabError(
            f"the row of {row.title} in MODELS has an option {unknown[0]!r}, which is no parameter: give it a line in "
            "class Common of vitlab/config.py, or the class a default and the row no such option"
        )
    options = {name: getattr(config, name) for name in row.shared + row.options}
    model = row.build(channels=channels, num_classes=num_classes, **options)
    return with_cosine_head(model) if config.remedy == "ldam_drw" else model


def reductions() -> dict[str, str]:
    """Title -> name of every model that goes on with fewer tokens; benchmarks and chapter 03 go through them."""
    return {row.title: name for name, row in MODELS.items() if issubclass(row.build, reduce.ReducedViT)}


def start_from(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy a trained ViT's weights into `model`; only the token predictors, which a ViT lacks, stay as they are."""
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise LabError(f"the run to start from has another shape: {str(error).splitlines()[-1].strip()}") from None
    if unexpected or any(not name.startswith("predictors.") for name in missing):
        raise LabError(f"the run to start from is another model: {[*missing, *unexpected][:3]} do not match")
    if missing and not hasattr(model, "pace"):
        raise LabError(
            f"{type(model).__name__} has predictors, which a ViT lacks, and no method pace(name), which says how much "
            "slower than these the ViT's own weights learn: give it one, as DynamicViT in vitlab/models/dynamic_vit.py"
        )
