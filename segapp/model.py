"""Networks over segmentation-models-pytorch, and what is changed in them."""

from __future__ import annotations

import difflib
import math
import warnings
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.deeplabv3.decoder import SeparableConv2d
from segmentation_models_pytorch.decoders.unet.decoder import (
    UnetCenterBlock,
    UnetDecoder,
    UnetDecoderBlock,
)
from segmentation_models_pytorch.encoders._efficientnet import MBConvBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from segapp.errors import ConfigError

_ARCHITECTURES = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "pan": smp.PAN,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
}
# how smp and timm say that an encoder doesn't go with an architecture
_REFUSALS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
# what timm's blocks call the module that each of their branches ends with
_DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: relu(branch(x) + shortcut(x)).

    He et al. 2016 (the block), Zhang et al. 2018 "Road extraction by deep residual U-Net" (its
    use in a decoder). The shortcut is the identity, or a 1×1 convolution where channels differ.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) → (N, out, H, W)
        return self.relu(self.branch(x) + self.shortcut(x))


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
        """[(N, C, H, W) the image, (N, c, H/2, W/2), …, H/32] → (N, widths[-1], H, W)."""
        image, *skips, x = features
        skips = [self.stem(image), *skips]
        x = self.center(x)
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(x, *skip.shape[2:], skip_connection=skip)
        return x


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged.

    (N, C, H, W) → logits (N, classes, H, W) float32 whose softmax is the mean of the members'.
    """

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        log_probs = [member(x).float().log_softmax(1) for member in self.members]
        return torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))


def build_network(
    name: str,
    encoder: str,
    in_channels: int,
    classes: int,
    residual: bool = True,
    separable: bool = False,
    full_resolution: bool = False,
    members: int = 1,
) -> nn.Module:
    """A randomly initialised network: (N, in_channels, H, W) → logits (N, classes, H, W).

    H and W are multiples of 32, and at least 64. name: one of model.architecture. residual: for a
    unet or unetplusplus, ResidualBlocks in the decoder. separable: its k×k convolutions become
    depthwise ones and a pointwise one each (Chollet 2017). full_resolution: for a unet, a
    FullResolutionDecoder. members: more than one make an Ensemble.

    Never touches the network. Raises ConfigError for an encoder that is unknown or can't serve this
    architecture, and for a decoder without k×k convolutions where `separable`.
    """
    _check_encoder(encoder)
    networks = [
        _build_one(name, encoder, in_channels, classes, residual, separable, full_resolution)
        for _ in range(members)
    ]
    return Ensemble(networks) if members > 1 else networks[0]


def _build_one(
    name: str,
    encoder: str,
    in_channels: int,
    classes: int,
    residual: bool,
    separable: bool,
    full_resolution: bool,
) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of smp's and timm's own names
        try:
            network = _ARCHITECTURES[name](
                encoder, encoder_weights=None, in_channels=in_channels, classes=classes
            )
            if name == "pan":  # a slice of 64 pixels is down to 1 before the last of its poolings
                network.decoder.fpa.down3[0].ceil_mode = True
            if encoder.startswith("tu-"):  # some of timm's take images of one size only
                with torch.no_grad():
                    network.eval()(torch.zeros(1, in_channels, 64, 96))
                network.train()
        except _REFUSALS as error:
            problem = str(error).rstrip(".") or "timm has it with these strides only"
            raise ConfigError(
                f"model.encoder={encoder!r} can't be used in a {name} with {in_channels} input "
                f"channel(s): {problem}. resnet34 always can."
            ) from error
    if full_resolution:
        decoder = network.decoder
        widths = tuple(block.conv2[0].out_channels for block in decoder.blocks)
        center = isinstance(decoder.center, UnetCenterBlock)
        network.decoder = FullResolutionDecoder(network.encoder.out_channels, widths, center)
        initialize_decoder(network.decoder)
    if residual:
        _make_decoder_residual(network.decoder)
    if separable and not _make_separable(network.decoder):
        raise ConfigError(
            f"model.separable: the decoder of {name} has no convolutions to separate; leave it out"
        )
    return network


def _check_encoder(encoder: str) -> None:
    known = list(smp.encoders.get_encoder_names())
    if encoder in known or encoder.startswith("tu-"):  # timm itself knows what its names are
        return
    near = difflib.get_close_matches(encoder, known, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"model.encoder={encoder!r} is unknown. The nearest is {near!r}. List them all with: python"
        ' -c "import segmentation_models_pytorch as smp; print(*smp.encoders.get_encoder_names())"'
    )


def _make_decoder_residual(decoder: nn.Module) -> None:
    """Replaces the pair of plain convolutions in each block of an smp U-Net(++) decoder."""
    for block in list(decoder.modules()):
        first = getattr(block, "conv1", None)  # None: UNet++'s empty blocks
        if not isinstance(first, Conv2dReLU):
            continue
        out_channels, in_channels = first.get_parameter("0.weight").shape[:2]
        residual = ResidualBlock(in_channels, out_channels)
        initialize_decoder(residual)
        block.conv1, block.conv2 = residual, nn.Identity()


def _make_separable(decoder: nn.Module) -> int:
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


def regularise(network: nn.Module, dropout: float, stochastic_depth: float) -> None:
    """Adds dropout and stochastic depth to a network of `build_network`, for its training.

    dropout: share of the channels, whole maps of them (Tompson et al. 2015), left out before the
    segmentation head. stochastic_depth: block l of L, the encoder's residual blocks and then the
    decoder's, is skipped with probability stochastic_depth × l / L, by each sample of a batch on
    its own (Huang et al. 2016); the others are scaled up to make up for it. 0 leaves what an
    encoder brings itself (MiT, EfficientNet).

    Names and shapes of the weights stay, copies are regularised too, and nothing happens in
    evaluation mode. Draws from torch's global generators. Raises ConfigError where no block can be
    skipped.
    """
    if dropout:
        head = network.get_submodule("segmentation_head")
        head.register_forward_pre_hook(_dropout_hook(dropout))
    if not stochastic_depth:
        return
    blocks = _residual_blocks(network)
    if not blocks:
        encoder = str(network.name).partition("-")[2]
        raise ConfigError(
            f"model.stochastic_depth: neither model.encoder={encoder} nor the decoder has residual "
            "blocks that could be skipped; leave it out, or use resnet34"
        )
    for number, block in enumerate(blocks, start=1):
        _make_skippable(block, stochastic_depth * number / len(blocks))
    encoder: Any = network.encoder
    if hasattr(encoder, "_drop_connect_rate"):  # EfficientNet's own, of the same blocks
        encoder._drop_connect_rate = 0.0


def _residual_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that can be skipped: the encoder's as they follow each other, the decoder's."""
    encoder: Any = network.encoder
    depth = len(encoder.out_channels) - 1
    # pspnet runs three stages only; the others are there for the pretrained weights' sake
    idle = tuple(f"{kind}{stage}." for kind in ("layer", "block") for stage in range(depth, 5))
    blocks = [block for name, block in encoder.named_modules() if not name.startswith(idle)]
    blocks += network.get_submodule("decoder").modules()
    return [block for block in blocks if _branch_end(block) or _drop_paths(block)]


def _branch_end(block: nn.Module) -> nn.Module | None:
    """The module whose output a residual block adds to its shortcut, where it can be hooked."""
    if isinstance(block, ResidualBlock):
        return block.branch
    if isinstance(block, BasicBlock):
        return block.bn2
    if isinstance(block, Bottleneck):
        return block.bn3
    if isinstance(block, InvertedResidual) and block.use_res_connect:
        return block.conv
    if isinstance(block, MBConvBlock) and block._has_drop_connect:
        return block._bn2
    return None


def _drop_paths(block: nn.Module) -> list[str]:
    """Where a block of timm's or of a MiT has its branches pass, if it has a shortcut."""
    has_skip = getattr(block, "has_skip", True)
    return [name for name in _DROP_PATHS if has_skip and hasattr(block, name)]


def _make_skippable(block: nn.Module, rate: float) -> None:
    end = _branch_end(block)
    if end is not None:
        end.register_forward_hook(_skip_hook(rate))
    for name in _drop_paths(block):
        setattr(block, name, ops.StochasticDepth(rate, "row"))


# Hooks, not modules around modules, which would change the weights' names. Functions that know
# nothing of their module, so that a copy of the network has them too.


def _dropout_hook(share: float):
    def drop(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return F.dropout2d(args[0], share, module.training)

    return drop


def _skip_hook(rate: float):
    def skip(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return ops.stochastic_depth(output, rate, "row", module.training)

    return skip
