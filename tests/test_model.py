import copy
import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from segapp.decoder import ResidualBlock
from segapp.errors import ConfigError
from segapp.model import Ensemble, build_network, regularise
from segapp.settings import ModelSettings

ARCHITECTURES = ModelSettings.model_fields["architecture"].annotation.__args__
RESIDUAL = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}


# --- the network -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 5), (4, 2), (7, 5)])
def test_shapes(name, channels, classes):
    network = build_network(name, "resnet18", channels, classes).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, channels, 64, 96)).shape == (2, classes, 64, 96)


@pytest.mark.parametrize(("name", "count"), [("unet", 5), ("unetplusplus", 11)])
def test_every_decoder_block_is_residual(name, count):
    network = build_network(name, "resnet34", 1, 2)
    decoder = network.get_submodule("decoder")
    blocks = list(decoder.get_submodule("blocks").children())
    assert [type(b.conv1) for b in blocks] == [ResidualBlock] * count
    assert [type(b.conv2) for b in blocks] == [torch.nn.Identity] * count
    assert not [m for m in decoder.modules() if isinstance(m, smp.base.modules.Conv2dReLU)]


@pytest.mark.parametrize("name", RESIDUAL)
def test_without_residual_it_is_plain_smp(name):
    plain = RESIDUAL[name]("resnet18", encoder_weights=None, in_channels=1, classes=2)
    network = build_network(name, "resnet18", 1, 2, residual=False)
    assert list(network.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    "encoder",
    ["resnet18", pytest.param("vgg11_bn", marks=pytest.mark.slow), "mit_b0", "tu-convnext_atto"],
)
@pytest.mark.parametrize("residual", [True, False])
def test_full_resolution_adds_a_stem_and_widens_the_last_block(encoder, residual):
    plain = build_network("unet", encoder, 3, 2, residual)
    network = build_network("unet", encoder, 3, 2, residual, full_resolution=True).eval()
    before, after = plain.state_dict(), network.state_dict()
    new = {name for name in after if name.startswith("decoder.stem.")}
    assert new
    assert [name for name in after if name not in new] == list(before)
    changed = {n for n in before if before[n].shape != after[n].shape}
    assert changed
    assert all(name.startswith("decoder.blocks.4.") for name in changed)
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 64, 96)).shape == (2, 2, 64, 96)


def test_full_resolution_sees_single_pixels():
    """With the encoder's maps switched off, an output pixel depends on the image around it: the
    stem's, two of the block's and the head's 3×3 convolutions reach 4 pixels far."""
    torch.manual_seed(0)
    network = build_network("unet", "resnet18", 1, 2, full_resolution=True).eval()
    for weight in network.get_submodule("encoder").parameters():
        weight.data.zero_()
    image = torch.rand(1, 1, 64, 64, requires_grad=True)
    network(image)[0, 1, 30, 20].backward()
    assert image.grad is not None
    rows, columns = image.grad[0, 0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (26, 34, 16, 24)


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize(
    ("encoder", "depth"),
    [("resnet18", 3), ("resnet18", 4), ("se_resnet50", 3), ("resnext50_32x4d", 4)],
)
def test_a_short_encoder_has_no_more_stages_and_asks_for_no_larger_slices(name, encoder, depth):
    extra = {"full_resolution": name == "unet"}
    whole = build_network(name, encoder, 1, 2, **extra).get_submodule("encoder").state_dict()
    network = build_network(name, encoder, 1, 2, **extra, encoder_depth=depth).eval()
    names = set(network.get_submodule("encoder").state_dict())
    for number in range(1, 5):
        stage = {n for n in whole if n.startswith(f"layer{number}.")}
        assert stage
        assert stage & names == (stage if number < depth else set())
    height, width = 2 * 2**depth, 3 * 2**depth
    logits = network(torch.rand(1, 1, height, width))
    assert logits.shape == (1, 2, height, width)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters()), "weights that nobody needs"


def test_a_short_encoder_computes_what_the_whole_one_does_up_to_there():
    whole = build_network("unet", "resnet18", 1, 2).get_submodule("encoder").eval()
    short = build_network("unet", "resnet18", 1, 2, encoder_depth=4).get_submodule("encoder").eval()
    short.load_state_dict({n: t for n, t in whole.state_dict().items() if "layer4." not in n})
    x = torch.rand(1, 1, 64, 96)
    for ours, theirs in zip(short(x), whole(x)[:5], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("encoder", ["vgg11_bn", "mit_b0", "efficientnet-b0", "tu-convnext_atto"])
def test_other_encoders_are_not_cut_short(encoder):
    with pytest.raises(ConfigError, match=r"model\.encoder"):
        build_network("unet", encoder, 3, 2, encoder_depth=4)


def test_block_with_a_zero_branch_is_its_first_convolution():
    block = ResidualBlock(4, 2).eval()
    block.branch[0].weight.data.zero_()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), block.first(x))


def test_block_adds_its_branch():
    block = ResidualBlock(1, 1).eval()  # BatchNorm's statistics are 0 and 1
    centre = torch.zeros(1, 1, 3, 3)
    centre[..., 1, 1] = 1
    block.first[0].weight.data, block.branch[0].weight.data = 2 * centre, 3 * centre
    x = torch.tensor([1.0, 4.0, -5.0]).reshape(1, 1, 1, 3)
    expected = torch.tensor([8.0, 32.0, 0.0]).reshape(1, 1, 1, 3)  # 3 · relu(2x) + relu(2x)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=0)
    block.branch[0].weight.data *= -1  # -3 · relu(2x) + relu(2x), then relu
    assert torch.equal(block(x), torch.zeros_like(x))


def test_new_layers_start_as_smp_starts_its_own():
    block = build_network("unet", "resnet18", 1, 2).get_submodule("decoder.blocks.0.conv1")
    weight = block.get_parameter("first.0.weight")
    bound = (6 / (weight.shape[1] * 9)) ** 0.5  # kaiming_uniform_, fan_in, relu
    assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("name", RESIDUAL)
def test_exportable(name):
    network = build_network(name, "resnet18", 1, 2).eval()
    x = torch.rand(2, 1, 32, 64)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.encoder='resent34'.*'resnet34'.*get_encoder_na"):
        build_network("unet", "resent34", 1, 2)
    with pytest.raises(ConfigError, match=r"model\.encoder='tu-nothing'.*Unknown model"):
        build_network("unet", "tu-nothing", 1, 2)


def test_encoder_that_the_architecture_refuses():
    with pytest.raises(ConfigError, match=r"model\.encoder='mit_b0' can't be used in a unetpluspl"):
        build_network("unetplusplus", "mit_b0", 3, 2)


# --- all architectures -------------------------------------------------------------------------

OTHERS = [
    *((name, "efficientnet-b0") for name in ("fpn", "deeplabv3plus", "linknet")),
    *((name, "mobilenet_v2") for name in ("manet", "pan", "pspnet")),
    *((name, "mit_b0") for name in ("segformer", "unet", "deeplabv3")),
    *((name, "tu-convnext_atto") for name in ("upernet", "unetplusplus", "linknet")),
    ("segformer", "tu-resnet18"),
]


@pytest.mark.parametrize(
    ("name", "encoder"), [*((name, "resnet18") for name in ARCHITECTURES), *OTHERS]
)
def test_logits_have_the_size_of_the_images(name, encoder):
    network = build_network(name, encoder, 1, 3, residual=False)
    for size in ((64, 64), (64, 96)):
        x = torch.rand(2, 1, *size)
        logits = network.train()(x)
        assert logits.shape == (2, 3, *size)
        logits.mean().backward()
        with torch.no_grad():
            assert network.eval()(x).shape == (2, 3, *size)


def test_pan_pools_larger_images_as_smp_does():
    torch.manual_seed(0)
    network = build_network("pan", "resnet18", 1, 2, residual=False).eval()
    torch.manual_seed(0)
    theirs = smp.PAN("resnet18", encoder_weights=None, in_channels=1, classes=2).eval()
    x = torch.rand(1, 1, 128, 256)
    with torch.no_grad():
        assert torch.equal(network(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "encoder", "problem"),
    [
        ("linknet", "mit_b0", "not supported for Linknet"),
        ("pan", "vgg11", "do not support dilated mode"),
        ("deeplabv3", "tu-dla34", "with these strides only"),
        ("unet", "tu-swin_tiny_patch4_window7_224", r"64\) doesn't match model"),
    ],
)
def test_encoders_that_cannot_serve(name, encoder, problem):
    refused = rf"model\.encoder='{encoder}' can't be used in a {name} .*{problem}"
    with pytest.raises(ConfigError, match=refused):
        build_network(name, encoder, 1, 2, residual=False)


# --- separable ---------------------------------------------------------------------------------


def size_of(module):
    return sum(p.numel() for p in module.parameters())


def dense_convolutions(module):
    return [
        m
        for m in module.modules()
        if isinstance(m, nn.Conv2d) and m.groups == 1 and m.kernel_size[0] > 1
    ]


@pytest.mark.parametrize("name", ["unet", "unetplusplus", "manet", "fpn", "deeplabv3", "upernet"])
def test_separable_decoders_are_smaller_and_answer_in_the_same_shape(name):
    residual = name in RESIDUAL
    plain = build_network(name, "resnet18", 1, 2, residual)
    network = build_network(name, "resnet18", 1, 2, residual, separable=True).eval()
    decoder = network.get_submodule("decoder")
    assert dense_convolutions(plain.get_submodule("decoder"))
    assert not dense_convolutions(decoder)
    assert size_of(decoder) < size_of(plain.get_submodule("decoder"))
    assert size_of(network.get_submodule("encoder")) == size_of(plain.get_submodule("encoder"))
    with torch.no_grad():
        assert network(torch.rand(2, 1, 64, 96)).shape == (2, 2, 64, 96)


def test_size_of_a_separable_block():
    network = build_network("unet", "resnet18", 1, 2, separable=True)
    first = 32 * 9 + 32 * 16  # depthwise, pointwise
    second = 16 * 9 + 16 * 16
    norms = 2 * 2 * 16
    last = network.get_submodule("decoder.blocks.4.conv1")
    assert size_of(last) == first + second + norms


def test_separable_convolutions_keep_dilation_and_bias():
    network = build_network("deeplabv3", "resnet18", 1, 2, residual=False, separable=True)
    depthwise, pointwise = network.get_submodule("decoder.aspp.convs.2.0")
    assert (depthwise.dilation, depthwise.padding, depthwise.groups) == ((24, 24), (24, 24), 512)
    assert pointwise.bias is None
    network = build_network("manet", "resnet18", 1, 2, residual=False, separable=True)
    _, pointwise = network.get_submodule("decoder.center.out_conv")
    assert not pointwise.bias.any()  # there, and initialised as smp does


def test_convolutions_to_one_channel_stay_dense():
    network = build_network("pan", "resnet18", 1, 2, residual=False, separable=True)
    left = dense_convolutions(network.get_submodule("decoder"))
    assert left
    assert all(conv.out_channels == 1 for conv in left)


@pytest.mark.parametrize("name", ["linknet", "pspnet", "segformer", "deeplabv3plus"])
def test_decoders_without_anything_to_separate(name):
    with pytest.raises(ConfigError, match=rf"model\.separable: the decoder of {name} has no"):
        build_network(name, "resnet18", 1, 2, residual=False, separable=True)


# --- the ensemble ------------------------------------------------------------------------------


class Constant(nn.Module):
    """Answers any image with the logarithms of the given probabilities."""

    def __init__(self, *probs):
        super().__init__()
        self.logits = torch.tensor(probs).log()[None, :, None, None]

    def forward(self, x):
        return self.logits.expand(len(x), -1, *x.shape[2:])


def test_ensemble_averages_probabilities():
    ensemble = Ensemble([Constant(0.9, 0.1), Constant(0.2, 0.8), Constant(0.4, 0.6)])
    logits = ensemble(torch.zeros(2, 1, 4, 6))
    assert logits.shape == (2, 2, 4, 6)
    expected = torch.tensor([0.5, 0.5]).expand(2, 4, 6, 2).movedim(-1, 1)
    torch.testing.assert_close(logits.softmax(1), expected)
    torch.testing.assert_close(logits.exp(), expected)  # they are log-probabilities


def test_ensemble_of_certain_members_stays_finite():
    certain = [Constant(1.0, 1e-38), Constant(1e-38, 1.0)]
    logits = Ensemble([*certain])(torch.zeros(1, 1, 2, 2).half())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.full((1, 2, 2, 2), math.log(0.5)))


def test_built_ensemble_has_members_of_its_own():
    ensemble = build_network("unet", "resnet18", 1, 2, members=3).eval()
    assert isinstance(ensemble, Ensemble)
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        singles = [member(x) for member in ensemble.members]
        mean = torch.stack([s.softmax(1) for s in singles]).mean(0)
        torch.testing.assert_close(ensemble(x).softmax(1), mean)
    assert len(singles) == 3
    assert not torch.equal(singles[0], singles[1])
    one = build_network("unet", "resnet18", 1, 2)
    assert {f"members.{n}.{k}" for n in range(3) for k in one.state_dict()} == set(
        ensemble.state_dict()
    )


# --- dropout and stochastic depth --------------------------------------------------------------


def test_dropout_zeroes_whole_maps_before_the_head():
    network = build_network("unet", "resnet18", 1, 2)
    regularise(network, 0.25, 0)
    head = network.get_submodule("segmentation_head")
    seen = []
    head[0].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    torch.manual_seed(0)
    head(torch.ones(200, 16, 4, 4))
    (maps,) = seen
    assert maps.unique().tolist() == pytest.approx([0, 4 / 3])
    dropped = (maps == 0).flatten(2).float().mean(2)  # (200, 16)
    assert set(dropped.unique().tolist()) == {0, 1}
    assert dropped.mean().item() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations


ENCODERS = ["resnet18", "resnet50", "mobilenet_v2", "efficientnet-b0", "mit_b0"]
ENCODERS += ["tu-resnet18", "tu-convnext_atto", "tu-efficientnet_lite0"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_regularised_in_training_only_and_copies_too(encoder):
    network = build_network("fpn", encoder, 1, 2, residual=False)
    for module in network.modules():  # what the encoder and fpn draw by themselves
        if "Drop" in type(module).__name__:
            module.p = module.drop_prob = 0.0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts some branches at 0
            module.momentum = 0.0  # so that passes don't differ by the statistics
    network.encoder._drop_connect_rate = 0.0
    plain = copy.deepcopy(network)
    regularise(network, 0, 0.5)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), plain.eval()(x))
        assert torch.equal(plain.train()(x), plain(x))
        other = copy.deepcopy(network.train())
        torch.manual_seed(0)
        first = other(x)
        assert not torch.equal(first, other(x))
        torch.manual_seed(0)
        assert torch.equal(first, network(x))


def skip_rates(network, inputs, monkeypatch):
    """The rates that stochastic depth was called with in one forward pass in training."""
    rates = []

    def record(input, p, mode, training):
        assert mode == "row"
        assert training
        rates.append(p)
        return input

    monkeypatch.setattr("torchvision.ops.stochastic_depth", record)
    network.train()(inputs)
    return rates


def test_rates_rise_with_depth_through_encoder_and_decoder(monkeypatch):
    network = build_network("unet", "resnet18", 1, 2)
    regularise(network, 0, 0.26)
    rates = skip_rates(network, torch.rand(2, 1, 64, 64), monkeypatch)
    assert rates == pytest.approx([0.02 * block for block in range(1, 14)])  # 8 there, 5 here


def test_stages_that_a_pspnet_does_not_run_do_not_count(monkeypatch):
    network = build_network("pspnet", "resnet18", 1, 2, residual=False)
    regularise(network, 0, 0.4)
    rates = skip_rates(network, torch.rand(2, 1, 64, 64), monkeypatch)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_drop_paths_get_the_rate_of_their_block():
    network = build_network("segformer", "mit_b0", 3, 2, residual=False)
    regularise(network, 0, 0.8)
    encoder = network.get_submodule("encoder")
    stages = (encoder.block1, encoder.block2, encoder.block3, encoder.block4)
    rates = [block.drop_path.p for stage in stages for block in stage]
    assert rates == pytest.approx([0.1 * number for number in range(1, 9)])


def test_each_sample_skips_on_its_own_and_the_mean_is_the_whole_branch():
    network = build_network("unet", "resnet18", 1, 2)
    regularise(network, 0, 0.4)
    block = network.get_submodule("decoder.blocks.4.conv1")  # the last: skipped at the full rate
    outputs = []
    block.branch.register_forward_hook(lambda module, args, output: outputs.append(output))
    x = torch.rand(1, 32, 4, 4, generator=torch.Generator().manual_seed(0)).expand(2000, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        block.train()
        block.first[1].eval()  # norms that don't depend on the batch
        block.branch[1].eval()
        block(x)
        block.eval()(x[:1])
    branch, whole = outputs
    skipped = (branch == 0).flatten(1).all(1)
    assert skipped.float().mean().item() == pytest.approx(0.4, abs=0.05)
    torch.testing.assert_close(branch[~skipped], (whole / 0.6).expand_as(branch[~skipped]))
    torch.testing.assert_close(branch.mean(0), whole[0], rtol=0.1, atol=0)


def test_a_frozen_encoder_skips_nothing(monkeypatch):
    network = build_network("unet", "resnet18", 1, 2)
    regularise(network, 0, 0.26)
    network.train()
    network.get_submodule("encoder").eval()
    drawn = []
    monkeypatch.setattr(
        "torchvision.ops.stochastic_depth",
        lambda input, p, mode, training: (drawn.append(training), input)[1],
    )
    network(torch.rand(2, 1, 64, 64))
    assert drawn == [False] * 8 + [True] * 5


def test_nothing_to_skip():
    network = build_network("fpn", "densenet121", 1, 2, residual=False)
    with pytest.raises(ConfigError, match=r"model\.stochastic_depth: .*model\.encoder=densenet121"):
        regularise(network, 0, 0.1)
    regularise(build_network("unet", "densenet121", 1, 2), 0, 0.1)  # its decoder has some


def test_no_regularisation_changes_nothing():
    network = build_network("unet", "resnet18", 1, 2)
    before = [
        (type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()
    ]
    regularise(network, 0, 0)
    assert before == [
        (type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()
    ]
