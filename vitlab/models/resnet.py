"""ResNet-20 for small images (He et al. 2016, section 4.2): the convolutional network that a ViT is measured against.

Shapes: B images, C channels of an image, D channels of a feature map, S pixels a side.
"""

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (16, 32, 64)  # channels at full size, after one halving, after two
BLOCKS = 3  # of each width: 6·3 + 2 = 20 layers with weights


class Residual(nn.Module):
    """x + two 3×3 convolutions of it, each with batch norm: (B, D, S, S) -> (B, D', S', S').

    Where the width grows, the first convolution and the shortcut step over every second pixel, and the shortcut gets
    channels of zeros (option A of the paper): it has no weights.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if before == after else (2, after - before)
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, features: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(features)).relu()))
        shortcut = features[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return (out + shortcut).relu()


class ResNet20(nn.Module):
    """Images (B, C, S, S) of any size to logits (B, classes)."""

    def __init__(self, *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        widths = [WIDTHS[0], *(width for width in WIDTHS for _ in range(BLOCKS))]
        self.layers = nn.Sequential(*(Residual(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.norm(self.conv(images)).relu()).mean((2, 3)))
