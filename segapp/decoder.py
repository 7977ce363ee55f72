"""What is changed in the decoders of segmentation-models-pytorch."""

from __future__ import annotations

from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.deeplabv3.decoder import SeparableConv2d
from segmentation_models_pytorch.decoders.unet.decoder import (
    UnetCenterBlock,
    UnetDecoder,
    UnetDecoderBlock,
)
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, the second beside a shortcut: x = first(x); relu(branch(x) + x).

    He et al. 2016 (residual learning), Zhang et al. 2018 "Road extraction by deep residual U-Net"
    (in a decoder). There the shortcut spans both convolutions, and needs a 1×1 convolution where
    channels differ, as they do in each block of a decoder; a step without these is shorter.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.branch = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) → (N, out, H, W)
        x = self.first(x)
        return self.relu(self.branch(x) + x)


class FullResolutionDecoder(UnetDecoder):
    """smp's U-Net decoder with a skip connection for the last block too: from the image itself.

    Encoders begin with a stride of 2, so that smp's last block has only an enlarged map to go by.
    A 3×3 convolution of the image gives it what is as fine as a pixel (as the first skip of
    Ronneberger et al. 2015).
    """

    def __init__(self, channels: list[int], widths: tuple[int, ...], center: bool):
        """channels: of the image and of the encoder's stages; widths: of the decoder's blocks."""
        super().__init__(channels, widths, n_blocks=len(widths), add_center_block=center)
        last = widths[-1]
        self.blocks[-1] = UnetDecoderBlock(widths[-2], last, last)
        self.stem = Conv2dReLU(channels[0], last, kernel_size=3, padding=1, use_norm="batchnorm")

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C, H, W) the image, (N, c, H/2, W/2) and so on] → (N, widths[-1], H, W)."""
        image, *skips, x = features
        skips = [self.stem(image), *skips]
        x = self.center(x)
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(x, *skip.shape[2:], skip_connection=skip)
        return x


def with_full_resolution(decoder: UnetDecoder, channels: list[int]) -> FullResolutionDecoder:
    """A freshly initialised one of the same widths. channels: see FullResolutionDecoder."""
    names = [f"blocks.{number}.conv2.0.weight" for number in range(len(decoder.blocks))]
    widths = tuple(decoder.get_parameter(name).shape[0] for name in names)
    center = isinstance(decoder.center, UnetCenterBlock)
    wider = FullResolutionDecoder(channels, widths, center)
    initialize_decoder(wider)
    return wider


def make_residual(decoder: nn.Module) -> None:
    """Replaces the pair of plain convolutions in each block of an smp U-Net(++) decoder."""
    for block in list(decoder.modules()):
        first = getattr(block, "conv1", None)  # None: UNet++'s empty blocks
        if not isinstance(first, Conv2dReLU):
            continue
        out_channels, in_channels = first.get_parameter("0.weight").shape[:2]
        residual = ResidualBlock(in_channels, out_channels)
        initialize_decoder(residual)
        block.conv1, block.conv2 = residual, nn.Identity()


def make_separable(decoder: nn.Module) -> int:
    """Replaces the dense k×k convolutions, k > 1, but those to one channel; returns how many."""
    dense = [
        (parent, name, conv)
        for parent in list(decoder.modules())
        for name, conv in parent.named_children()
        if isinstance(conv, nn.Conv2d)
        and conv.groups == 1
        and conv.kernel_size[0] > 1
        and conv.out_channels > 1  # to one channel, separate ones would need more weights
    ]
    for parent, name, conv in dense:
        separable = SeparableConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.stride[0],
            int(conv.padding[0]),
            conv.dilation[0],
            conv.bias is not None,
        )
        initialize_decoder(separable)
        setattr(parent, name, separable)
    return len(dense)
