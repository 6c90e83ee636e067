"""What other code reads of factor layers is what it read of the dense ones; what they share is checked."""

import copy

import pytest
import torch
from torch import nn

from jointsvd import (
    Group,
    Plan,
    TuckerGroup,
    apply_plan,
    build_structure,
    check_sharing,
    prepare_for_inference,
    save_compressed,
    unique_tensors,
)
from jointsvd.deployment.export import to_onnx, to_torch

NAMES = ["a", "b"]
GROUPS = {
    "pair": Group(("a",), 0, 18),
    "joint": Group(("a", "b"), 0, 8),
    "two": Group(("a", "b"), 6, 9),
    "tucker": TuckerGroup(("a",), (6, 8)),
    "coupled": TuckerGroup(("a", "b"), (3, 4), (3, 4)),
}
IMAGES = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    conv = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "padding_mode": "zeros"}
    return nn.ModuleDict({name: nn.Conv2d(6, 8, 3, **conv) for name in NAMES})


@pytest.mark.parametrize("kind", GROUPS)
def test_factor_layers_look_like_the_layers_they_stand_for(kind):
    model = network()
    layer, dense = apply_plan(model, Plan((GROUPS[kind],)))["a"], model["a"]
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(layer, name) == getattr(dense, name)
    torch.testing.assert_close(
        nn.functional.conv2d(IMAGES, layer.weight, layer.bias, dense.stride, dense.padding, dense.dilation),
        layer(input=IMAGES),
        atol=1e-5,
        rtol=1e-4,
    )
    assert layer.weight.dtype == dense.weight.dtype
    torch.testing.assert_close(layer.bias, dense.bias)
    assert "weight" not in layer.state_dict()
    assert not {"weight", "bias"} & {name for name, _ in layer.named_parameters()}
    layer.weight.sum().backward()  # gradients reach the factors
    assert all(p.grad is not None for name, p in layer.named_parameters() if not name.endswith("bias"))


def test_linear_layers_too():
    model = nn.Sequential(nn.Linear(12, 7), nn.Linear(12, 7))
    for group in (Group(("0", "1"), 3, 2), Group(("0",), 0, 7)):
        layer = apply_plan(model, Plan((group,)))[0]
        assert (layer.in_features, layer.out_features) == (12, 7)
        x = torch.randn(3, 12)
        torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x))


def test_pytorch_fuses_norms_into_the_second_factor():
    """Its table of fusions goes by class: it takes the conv in a factor layer."""
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    small = apply_plan(model, Plan((Group(("0",), 0, 18),)))
    expected = small(IMAGES)
    fused = torch.ao.quantization.fuse_modules(small, [["0.v", "1"]])
    assert isinstance(fused[1], nn.Identity)
    torch.testing.assert_close(fused(IMAGES), expected, atol=1e-5, rtol=1e-4)


def to_meta(model):
    return model.to("meta")


def assigned(model):
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    return model


def converted(model):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("kind", ["joint", "two", "coupled"])
@pytest.mark.parametrize("change", [to_meta, assigned, converted])
def test_factors_that_came_apart_are_found(kind, change, tmp_path):
    plan = Plan((GROUPS[kind],))
    model = build_structure(Chain(), plan).eval()
    check_sharing(model)
    check_sharing(copy.deepcopy(model).double())
    apart = change(copy.deepcopy(model))
    for use in (
        check_sharing,
        lambda model: save_compressed(tmp_path / "file", model, plan),
        lambda model: to_onnx(model, IMAGES),
        lambda model: to_torch(model, IMAGES),
        lambda model: prepare_for_inference(model, IMAGES),
    ):
        with pytest.raises(ValueError, match="came apart into copies"):
            use(apart)
    assert not list(tmp_path.iterdir())


def test_a_moving_average_goes_over_each_tensor_once():
    model = build_structure(Chain(), Plan((GROUPS["joint"],)))
    keys = list(unique_tensors(model))
    assert len(keys) == len(list(model.parameters())) == len(model.state_dict()) - 1
