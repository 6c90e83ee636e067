"""Dense networks: any of timm or torchvision, ResNets and VGGs with a CIFAR stem too, or a function of the user's."""

import difflib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torch.overrides import TorchFunctionMode

from jointsvd.network.checked import Size, check_arguments

Stem = Literal["cifar", "imagenet"]
Source = Literal["timm", "torchvision", "python"]

_CIFAR_BLOCKS = {"resnet20": 3, "resnet56": 9, "resnet110": 18}  # blocks in each of three stages
WITH_CIFAR_STEM = ("resnet18", "resnet34", "resnet50", "vgg16_bn", "vgg19_bn", *_CIFAR_BLOCKS)


def build_model(
    name: str,
    *,
    num_classes: Size,
    in_channels: Size = 3,
    stem: Stem = "cifar",
    source: Source = "timm",
    pretrained: bool | str = False,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A dense network with random weights, or with ImageNet weights of `source`.

    name: of a network of timm or torchvision, or, for source "python", the dotted path of a function or class that is
    called with `arguments` and returns the network (num_classes and in_channels are then its own affair).
    stem: "imagenet" is the network as its source has it. "cifar" is He et al.'s for 32 x 32 images: a 3x3 conv of
    stride 1 and no pooling; a VGG gets one linear layer behind its convs. resnet20, 56 and 110 are He et al.'s for
    CIFAR (widths 16, 32, 64), with 1x1 shortcuts. pretrained: True (the source's default; of torchvision its first
    weights, which the paper starts from), or the name of weights: a tag of timm (a1_in1k) or IMAGENET1K_V2. With
    other than 1000 classes the classifier is a new one.
    Raises ValueError for unknown names, values of wrong types, and for pretrained weights that would not fit or could
    not be had.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    check_architecture(name, **sizes, stem=stem, source=source, pretrained=pretrained, arguments=arguments)
    if source == "python":
        return _from_python(name, arguments or {})
    if name in _CIFAR_BLOCKS:
        return _cifar_resnet(_CIFAR_BLOCKS[name], num_classes, in_channels)
    try:
        build = _timm if source == "timm" else _torchvision
        model = build(name, num_classes, in_channels, pretrained)
    except (OSError, RuntimeError, KeyError) as error:
        if not pretrained:
            raise
        raise ValueError(
            f"could not get {source}'s weights of {name} ({error}); on a machine without internet, put a state dict "
            "on disk and name it by model.checkpoint"
        ) from error
    if stem == "cifar":
        _set_cifar_stem(model, name, num_classes, in_channels)
    return model


def empty_model(**architecture: Any) -> nn.Module:
    """`build_model` on the meta device, for which no memory is taken; where a constructor looks at values, it is built
    and moved there. Raises ValueError as `build_model` does."""
    try:
        with torch.device("meta"), _Unfilled():
            return build_model(**architecture)
    except RuntimeError:
        return build_model(**architecture).to("meta")


class _Unfilled(TorchFunctionMode):
    """Leaves tensors on the meta device as they are, instead of going through what would fill them with numbers."""

    _FILLS = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "zero_", "fill_")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._FILLS and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def check_classifies(network: nn.Module, input_size: tuple[int, int, int], num_classes: int, name: str) -> None:
    """Raises ValueError unless a network on the meta device takes images (channels, height, width), and gives logits of
    that many classes. name: of the network, in messages."""
    training = network.training
    try:
        output = network.eval()(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, input_size))
        raise ValueError(f"{name} cannot take images of {size}; set data.image_size ({str(error)[:300]})") from error
    finally:
        network.train(training)
    if not isinstance(output, torch.Tensor) or output.shape != (1, num_classes):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"{name} gives {found} for one image; the data needs logits of {num_classes} classes")


def check_architecture(
    name: str, *, in_channels: int, stem: str, source: str, pretrained: bool | str = False, **more: Any
) -> None:
    """Raises ValueError for arguments of `build_model` that are of wrong types, or do not go together."""
    given = {"name": name, "in_channels": in_channels, "pretrained": pretrained}
    check_arguments(build_model, given | more, "model: ")
    if source not in ("timm", "torchvision", "python") or stem not in ("cifar", "imagenet"):
        raise ValueError(
            f"stem is 'cifar' or 'imagenet', source 'timm' or 'torchvision' (or model._target_=package.function); got "
            f"{stem!r}, {source!r}"
        )
    if source == "python":
        _function(name)
        if pretrained:
            raise ValueError(f"{name} loads its own weights, or model.checkpoint does; leave pretrained=false")
        return
    if name in _CIFAR_BLOCKS:
        if (source, stem, pretrained) != ("timm", "cifar", False):
            raise ValueError(f"{name} is a network for CIFAR: set source=timm, stem=cifar and pretrained=false")
        return
    _check_name(name, source)
    if stem == "cifar" and name not in WITH_CIFAR_STEM:
        raise ValueError(f"{name} has no CIFAR stem: set stem=imagenet, which leaves the network as {source} has it")
    if pretrained and (stem != "imagenet" or in_channels != 3):
        raise ValueError(
            "pretrained ImageNet weights have a stem for 3-channel images of 224 x 224; set stem=imagenet and "
            "in_channels=3, or train here (pretrained=false)"
        )


def _check_name(name: str, source: str) -> None:
    known = timm.list_models() if source == "timm" else torchvision.models.list_models(torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *WITH_CIFAR_STEM], n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(WITH_CIFAR_STEM)}, say"
        raise ValueError(f"unknown model {name!r} of {source}; {advice}")


def _function(path: str) -> Callable[..., Any]:
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot import {path!r} ({error}); name it as package.function") from error
    if not callable(found):
        raise ValueError(f"{path} is a {type(found).__name__}, not a function or class that builds a network")
    return found


def _from_python(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = _function(path)(**arguments)
    except TypeError as error:
        raise ValueError(f"{path} cannot be called with {dict(arguments)}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} returned a {type(model).__name__}, not a network (nn.Module)")
    return model


def _timm(name: str, num_classes: int, in_channels: int, pretrained: bool | str) -> nn.Module:
    tagged = f"{name}.{pretrained}" if isinstance(pretrained, str) else name
    return timm.create_model(tagged, pretrained=bool(pretrained), num_classes=num_classes, in_chans=in_channels)


def _torchvision(name: str, num_classes: int, in_channels: int, pretrained: bool | str) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if in_channels != 3:
        _set_in_channels(model, in_channels)
    if pretrained:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1" if pretrained is True else pretrained]
        own = model.state_dict()
        trained = weights.get_state_dict(check_hash=True)
        fitting = {key: value for key, value in trained.items() if key in own and own[key].shape == value.shape}
        model.load_state_dict(own | fitting)
    return model


def _set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Give a network of 3-channel images a new first conv."""
    name, conv = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    geometry: dict[str, Any] = {key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    new = nn.Conv2d(in_channels, conv.out_channels, bias=conv.bias is not None, **geometry)
    model.set_submodule(name, new)


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
