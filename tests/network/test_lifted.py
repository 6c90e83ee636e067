"""Convs of lines, transposed ones and layers with one Parameter: at full rank they are the dense ones, everywhere."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jointsvd import Group, Plan, apply_plan, compress, load_compressed, num_parameters, save_compressed
from jointsvd.deployment.export import to_onnx
from jointsvd.deployment.inference import prepare_for_inference
from jointsvd.deployment.onnx_runtime import onnx_session
from jointsvd.deployment.quantize import to_int8
from jointsvd.network.lifted import Lifted, lift


class Lines(nn.Module):
    shape, members = (4, 40), {"a.inner": 36, "b.inner": 24}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(4, 48, 9, 2, 4), nn.Conv1d(48, 24, 5, padding="same", dilation=2, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu().mean(2))


class Blocks(nn.Module):
    shape, members = (3, 12, 12), {"up.inner": 24}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.up = nn.Conv2d(3, 24, 3, 2, 1), nn.ConvTranspose2d(24, 16, 2, 2)
        self.over, self.head = nn.ConvTranspose2d(16, 16, 3, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.head(self.over(self.up(self.a(x).relu()).relu()).relu()).mean((2, 3))


class Tied(nn.Module):
    shape, members = (3, 12, 12), {"a.inner": 48}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.b.weight, self.head = self.a.weight, nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.b(self.a(self.stem(x).relu()).relu()).relu().mean((2, 3)))


class Volumes(nn.Module):
    shape, members = (2, 6, 8, 8), {"a.inner": 18, "b.inner": 72}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv3d(2, 24, 3, padding=1), nn.Conv3d(24, 24, (3, 1, 3), (2, 1, 2), (0, 1, 2), (2, 1, 2))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3, 4)))


class Groups(nn.Module):
    shape, members = (3, 12, 12), {"a.inner.0": 24, "a.inner.1": 24}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.depth, self.head = nn.Conv2d(16, 16, 3, groups=16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.depth(self.a(self.stem(x).relu()).relu()).relu().mean((2, 3)))


@pytest.fixture(params=[Lines, Volumes, Blocks, Groups, Tied])
def build(request):
    return request.param


def images(build, num=8):
    return torch.randn(num, *build.shape, generator=torch.Generator().manual_seed(0))


def test_lifted_layers_compute_the_same_and_look_the_same(build):
    model, x = build().eval(), images(build)
    lifted = lift(copy.deepcopy(model))
    torch.testing.assert_close(lifted(x), model(x), atol=1e-5, rtol=1e-5)
    assert num_parameters(lifted) == num_parameters(model)
    for name, module in lifted.named_modules():
        if isinstance(module, Lifted):
            dense = model.get_submodule(name)
            assert torch.equal(module.weight, dense.weight)
            assert module.bias is None or torch.equal(module.bias, dense.bias)
            assert (module.in_channels, module.kernel_size) == (dense.in_channels, dense.kernel_size)


def test_full_rank_is_dense_in_onnx_and_int8_and_ready_to_run_too(build):
    model, x = build().eval(), images(build)
    small = apply_plan(model, Plan(tuple(Group((name,), 0, rank) for name, rank in build.members.items())))
    expected = model(x).detach()
    torch.testing.assert_close(small(x), expected, atol=1e-5, rtol=1e-4)
    content = to_onnx(small, x[:2])
    torch.testing.assert_close(torch.from_numpy(onnx_session(content)(x)), expected, atol=1e-4, rtol=1e-4)
    int8 = torch.from_numpy(onnx_session(to_int8(content, [x]))(x))
    assert (int8 - expected).abs().max() < 0.1 * expected.abs().max()
    torch.testing.assert_close(prepare_for_inference(small, x, passes=2).model(x), expected, atol=1e-4, rtol=1e-4)


def test_compressed_saved_and_loaded(build, tmp_path):
    model, batches = build().eval(), [images(build, 16)]
    before = copy.deepcopy(model.state_dict())
    result = compress(model, batches, params=1.6)
    assert num_parameters(model) >= 1.6 * num_parameters(result.model)
    chosen = {name for line in result.report if line["rank"] for name in line["layers"]}
    assert chosen & build.members.keys()
    with torch.no_grad():
        found, expected = result.model(batches[0]), model(batches[0])
    assert F.mse_loss(found, expected) < 0.3 * expected.var()
    save_compressed(tmp_path / "small", result.model, result.plan)
    torch.testing.assert_close(load_compressed(tmp_path / "small", build()).eval()(batches[0]), found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_stays_is_as_it_was():
    """Only what a plan names is lifted."""
    small = apply_plan(Lines(), Plan((Group(("a.inner",), 0, 3),)))
    assert type(small.b) is nn.Conv1d
    named = {line["name"]: line["reason"] for line in compress(Blocks().eval(), [images(Blocks)], params=1.1).untouched}
    assert named["over"] == "transposed conv of groups, or whose kernels overlap"


def test_a_tied_weight_is_factored_once():
    small = apply_plan(Tied(), Plan((Group(("a.inner",), 0, 4),)))
    assert small.a.inner is small.b.inner
    assert not torch.equal(small.a.bias, small.b.bias)
    assert num_parameters(Tied()) - num_parameters(small) == 16 * 16 * 9 - 4 * 2 * 48


def test_depthwise_convs_stay():
    """A row of 3 x 3 numbers a channel: factors would save a third of next to nothing, and take time."""
    named = {line["name"]: line["reason"] for line in compress(Groups().eval(), [images(Groups)], params=1.1).untouched}
    assert named == {"depth": "grouped conv (16 groups)"}


def test_budgets_of_time_leave_them_alone():
    """Dressed up, the dense network would take another time, and what is faster than that says nothing."""
    result = compress(Groups().eval(), [images(Groups)], latency_ms=1000)
    assert not any(isinstance(module, Lifted) for module in result.model.modules())
    assert "a" in {line["name"] for line in result.untouched}


def test_an_output_size_of_overlapping_blocks_is_refused():
    layer = lift(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2)))[0]
    assert layer(torch.zeros(1, 4, 3, 3), output_size=[6, 6]).shape[-1] == 6
    with pytest.raises(ValueError, match=r"output_size=\(7, 7\)"):
        layer(torch.zeros(1, 4, 3, 3), output_size=[7, 7])
