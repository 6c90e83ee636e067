"""Dense networks: ResNets and VGGs of timm or torchvision, with an ImageNet or a CIFAR stem."""

from typing import Any, Literal

import timm
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

_CIFAR_BLOCKS = {"resnet20": 3, "resnet56": 9, "resnet110": 18}  # blocks in each of three stages
NAMES = ("resnet18", "resnet34", "resnet50", "vgg16_bn", "vgg19_bn", *_CIFAR_BLOCKS)


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    stem: Literal["cifar", "imagenet"] = "cifar",
    source: Literal["timm", "torchvision"] = "timm",
    pretrained: bool = False,
) -> nn.Module:
    """A dense network with random weights, or with `source`'s ImageNet weights if `pretrained`.

    stem: "cifar" is He et al.'s for 32 x 32 images: a 3x3 conv of stride 1 and no pooling; a VGG gets one linear layer
    behind its convs. resnet20, 56 and 110 are He et al.'s for CIFAR (widths 16, 32, 64), with 1x1 shortcuts.
    With pretrained weights and other than 1000 classes the classifier is a new one.
    Raises ValueError for unknown names, and for pretrained weights that would not fit or could not be had.
    """
    check_architecture(name, in_channels=in_channels, stem=stem, source=source, pretrained=pretrained)
    if name in _CIFAR_BLOCKS:
        return _cifar_resnet(_CIFAR_BLOCKS[name], num_classes, in_channels)
    try:
        build = _timm if source == "timm" else _torchvision
        model = build(name, num_classes, in_channels, pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ValueError(
            f"could not get {source}'s weights of {name} ({error}); on a machine without internet, put a state dict "
            "on disk and name it by model.checkpoint"
        ) from error
    if stem == "cifar":
        _set_cifar_stem(model, name, num_classes, in_channels)
    return model


def check_architecture(name: str, *, in_channels: int, stem: str, source: str, pretrained: bool, **_: Any) -> None:
    """Raises ValueError for arguments of `build_model` that do not go together."""
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}; one of {', '.join(NAMES)}")
    if stem not in ("cifar", "imagenet") or source not in ("timm", "torchvision"):
        raise ValueError(f"stem is 'cifar' or 'imagenet', source 'timm' or 'torchvision'; got {stem!r}, {source!r}")
    if name in _CIFAR_BLOCKS and (source, stem, pretrained) != ("timm", "cifar", False):
        raise ValueError(f"{name} is a network for CIFAR: set source=timm, stem=cifar and pretrained=false")
    if pretrained and (stem != "imagenet" or in_channels != 3):
        raise ValueError(
            "pretrained ImageNet weights have a stem for 3-channel images of 224 x 224; set stem=imagenet and "
            "in_channels=3, or train here (pretrained=false)"
        )


def _timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)


def _torchvision(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    # the paper starts from torchvision's first weights
    model = torchvision.models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
    if num_classes != 1000:
        if name.startswith("vgg"):
            model.classifier[-1] = nn.Linear(4096, num_classes)
        else:
            model.fc = nn.Linear(model.fc.in_features, num_classes)
    if in_channels != 3:
        if name.startswith("vgg"):
            model.features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
        else:
            model.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return model


def _cifar_resnet(num_blocks: int, num_classes: int, in_channels: int) -> nn.Module:
    """timm's ResNet with three stages; its stem has 64 channels, which becomes 16 here."""
    block: Any = BasicBlock  # timm's annotation names an instance
    model: Any = ResNet(block, (num_blocks,) * 3, num_classes=num_classes, channels=(16, 32, 64))
    model.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
    model.bn1, model.maxpool, model.layer4 = nn.BatchNorm2d(16), nn.Identity(), nn.Identity()
    first = model.layer1[0]
    first.conv1, first.downsample = nn.Conv2d(16, 16, 3, 1, 1, bias=False), None
    for conv in (model.conv1, first.conv1):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return model


def _set_cifar_stem(model: Any, name: str, num_classes: int, in_channels: int) -> None:
    if not name.startswith("vgg"):
        model.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    elif hasattr(model, "pre_logits"):  # timm
        model.pre_logits = nn.Identity()
        model.head.fc = nn.Linear(512, num_classes)
    else:
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)


def init_truncated_normal(model: nn.Module, std: float) -> None:
    """Weights of convs and linear layers from a truncated normal of mean 0, as the paper trains its networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
