"""A head whose logits are cosines: what LDAM asks margins of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.errors import LabError

COSINE_SCALE = 30.0  # s of Cao et al. 2019: a softmax of plain cosines could never be sure


class CosineHead(nn.Module):
    """Logits (B, C) of features (B, D): s · cos of the angle between the features and each class's weights.

    Their lengths do not count, so that a margin can't be had by growing them (Cao et al. 2019, section 3; Wang et al.
    2018, CosFace). In float32: of s times a cosine, bf16 would keep one decimal.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.trunc_normal_(self.weight, std=0.02)  # only the directions matter

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return COSINE_SCALE * F.linear(F.normalize(features.float()), F.normalize(self.weight))


def with_cosine_head(model: nn.Module) -> nn.Module:
    """`model` with its last layer, an attribute `head` or the last `nn.Linear` it has, replaced by a `CosineHead`.

    LabError for a model without one.
    """
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise LabError(f"{type(model).__name__} has no nn.Linear as its head: give it a CosineHead yourself")
    name = "head" if "head" in linear else linear[-1]
    old = model.get_submodule(name)
    model.set_submodule(name, CosineHead(old.in_features, old.out_features))
    return model
