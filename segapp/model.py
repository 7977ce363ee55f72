"""Networks over segmentation-models-pytorch."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._efficientnet import MBConvBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from segapp.decoder import ResidualBlock, make_residual, make_separable, with_full_resolution
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
_DECODER_WIDTHS = (256, 128, 64, 32, 16)  # smp's own, of a U-Net's and U-Net++'s blocks
# what timm's blocks call the module that each of their branches ends with
_DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")


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
    encoder_depth: int = 5,
    members: int = 1,
) -> nn.Module:
    """A randomly initialised network: (N, in_channels, H, W) → logits (N, classes, H, W).

    H and W are multiples of 2^encoder_depth, and at least twice that. name: one of
    model.architecture. residual: for a unet or unetplusplus, ResidualBlocks in the decoder.
    separable: its k×k convolutions become depthwise ones and a pointwise one each (Chollet 2017).
    full_resolution: for a unet, a FullResolutionDecoder. encoder_depth: below 5, for a unet or
    unetplusplus over a ResNet, the encoder's last stages and the decoder's first blocks are left
    out. members: more than one make an Ensemble.

    Never touches the network. Raises ConfigError for an encoder that is unknown or can't serve this
    architecture or depth, and for a decoder without k×k convolutions where `separable`.
    """
    if members > 1:
        given = (in_channels, classes, residual, separable, full_resolution, encoder_depth)
        return Ensemble([build_network(name, encoder, *given) for _ in range(members)])
    _check_encoder(encoder)
    sizes: dict[str, Any] = {}
    if encoder_depth < 5:
        widths = _DECODER_WIDTHS[-encoder_depth:]
        sizes = {"encoder_depth": encoder_depth, "decoder_channels": widths}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of smp's and timm's own names
        try:
            network = _ARCHITECTURES[name](
                encoder, encoder_weights=None, in_channels=in_channels, classes=classes, **sizes
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
    if encoder_depth < 5:
        _leave_out_stages(network.encoder, encoder, encoder_depth)
    if full_resolution:
        network.decoder = with_full_resolution(network.decoder, network.encoder.out_channels)
    if residual:
        make_residual(network.decoder)
    if separable and not make_separable(network.decoder):
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


def _leave_out_stages(encoder: nn.Module, name: str, depth: int) -> None:
    """smp computes the first `depth` stages of an encoder only, but keeps the others' weights."""
    stages = [f"layer{number}" for number in range(depth, 5)]
    if not all(isinstance(getattr(encoder, stage, None), nn.Sequential) for stage in stages):
        raise ConfigError(
            f"model.encoder_depth={depth}: only encoders of the ResNet kind can be cut short, not "
            f"{name}; leave it out"
        )
    for stage in stages:
        setattr(encoder, stage, nn.Identity())


def narrow(network: nn.Module, weights: Mapping[str, np.ndarray], inputs: int) -> None:
    """Gives a network of `build_network` the numbers of channels that a pruned one has, but those
    of the input and of the classes. weights: the pruned network's, by name; only convolutions and
    batch norms can differ in them."""
    for name, layer in network.named_modules():
        shape = weights[f"{name}.weight"].shape if f"{name}.weight" in weights else ()
        if isinstance(layer, nn.Conv2d) and shape:
            depthwise = layer.groups == layer.in_channels > 1
            layer.groups = shape[0] if depthwise else layer.groups
            if layer.in_channels != inputs or depthwise:
                layer.in_channels = shape[1] * layer.groups
            if not name.startswith("segmentation_head"):
                layer.out_channels = shape[0]
            size = (layer.out_channels, layer.in_channels // layer.groups, *shape[2:])
            if size != layer.weight.shape:
                layer.weight = nn.Parameter(layer.weight.new_zeros(size))
            if layer.bias is not None and len(layer.bias) != size[0]:
                layer.bias = nn.Parameter(layer.bias.new_zeros(size[0]))
        elif isinstance(layer, nn.BatchNorm2d) and shape and shape != layer.weight.shape:
            layer.num_features = shape[0]
            layer.weight, layer.bias = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
            layer.running_mean, layer.running_var = torch.zeros(shape), torch.ones(shape)


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
