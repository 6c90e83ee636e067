"""Exported networks: what they compute, what they weigh, and that shared factors are stored once."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from jointsvd import Plan, build_structure, num_parameters, plan_compression, recalibrate_batchnorm, save_compressed
from jointsvd.deployment.export import to_onnx, to_torch
from jointsvd.deployment.onnx_runtime import onnx_session
from jointsvd.deployment.quantize import to_int8
from jointsvd.training.models import build_model

IMAGES = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
SLOW = ["", "svd", "ljsvd", "tucker2", "nc_ctd"]


def network(method):
    torch.manual_seed(0)
    dense = build_model("resnet18", num_classes=10, in_channels=1)
    plan = plan_compression(dense, method, rank_rate=0.1) if method else Plan()
    return recalibrate_batchnorm(build_structure(dense, plan).eval(), [IMAGES]), plan


@pytest.mark.parametrize("method", ["rjsvd1", "bijsvd", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_onnx_runtime_computes_the_same_for_any_batch(method):
    model, _ = network(method)
    content = to_onnx(model, IMAGES[:2])
    assert len(content) <= 1.03 * 4 * num_parameters(model)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (IMAGES, IMAGES[:1]):
        (found,) = session.run(["logits"], {"images": batch.numpy()})
        np.testing.assert_allclose(found, model(batch).detach().numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("method", "shared"), [("rjsvd1", "v"), ("ljsvd", "u")])
def test_a_shared_factor_is_one_initializer(method, shared):
    model, plan = network(method)
    graph = onnx.load_from_string(to_onnx(model, IMAGES[:2])).graph
    names = [initializer.name for initializer in graph.initializer]
    uses = [name for node in graph.node for name in node.input if name in names]
    groups = [group.members for group in plan.groups if len(group.members) > 1]
    assert groups
    for members in groups:
        (factor,) = {f"{name}.{shared}.weight" for name in members} & set(names)
        assert uses.count(factor) == len(members)


def test_torch_export_shares_too():
    model, _ = network("ljsvd")
    content = to_torch(model, IMAGES[:2])
    assert len(content) <= 1.15 * 4 * num_parameters(model)


def test_files_that_onnx_runtime_cannot_run():
    content = to_onnx(nn.Sequential(nn.Conv2d(1, 2, 3)).eval(), IMAGES[:2])
    with pytest.raises(ValueError, match=r"cannot run on images \(8, 16, 16\)"):
        onnx_session(content)(IMAGES[:, 0])
    newer = onnx.load_from_string(content)
    newer.opset_import[0].version = 99
    for wrong in (newer.SerializeToString(), content[:50], b""):
        with pytest.raises(ValueError, match="cannot read this file; export it again"):
            onnx_session(wrong)
    other = onnx.load_from_string(content)
    other.graph.input[0].name = other.graph.node[0].input[0] = "x"
    with pytest.raises(ValueError, match=r"inputs are \['x'\]"):
        onnx_session(other.SerializeToString())


@pytest.mark.parametrize("convert", [to_onnx, to_torch])
def test_bad_input(convert):
    model, _ = network("ljsvd")
    with pytest.raises(ValueError, match="cannot run on images"):
        convert(model, torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="on its device, cpu"):
        convert(model, torch.zeros(2, 1, 16, 16, device="meta"))
    with pytest.raises(ValueError, match=r"call \.eval"):
        convert(model.train(), IMAGES)


@pytest.mark.parametrize("method", ["ljsvd", "rjsvd1", "bijsvd"])  # the last two: members' norms follow what is shared
def test_int8_is_four_times_smaller_and_near(method, capsys):
    model, _ = network(method)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.uniform_(-1.5, 1.5)
    whole = to_onnx(model, IMAGES[:2])
    content = to_int8(whole, [IMAGES[:4], IMAGES[4:]])
    assert len(content) < 0.3 * len(whole)
    assert capsys.readouterr().out == ""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": IMAGES.numpy()})
    expected = model(IMAGES).detach().numpy()
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    graph = onnx.load_from_string(content).graph
    tensors = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    assert sum(map(np.size, stored)) == sum(p.numel() for p in model.parameters() if p.ndim > 1)  # shared factors once
    assert max(abs(weights.astype(int)).max() for weights in stored) <= 64  # 2 * 64 * 255 < 2^15, as AVX2 adds products
    with pytest.raises(ValueError, match="some hundred"):
        to_int8(whole, [])
    with pytest.raises(ValueError, match="cannot be quantised on images"):
        to_int8(whole, [torch.zeros(2, 3, 16, 16)])


@pytest.mark.slow
def test_the_command_line(tmp_path):
    model, plan = network("ljsvd")
    architecture = '{"name": "resnet18", "num_classes": 10, "in_channels": 1}'
    save_compressed(tmp_path / "net.safetensors", model, plan, metadata={"architecture": architecture})

    def run(*options):
        command = [
            sys.executable,
            "-m",
            "jointsvd",
            "export",
            f"checkpoint={tmp_path}/net.safetensors",
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    for options, message in (
        (["input_size=[3,16,16]"], "cannot run on images (2, 3, 16, 16)"),
        (["format=int8", "input_size=[1,16,16]"], "data= for the images of int8"),
        (["format=tflite", "input_size=[1,16,16]"], "format is one of onnx, int8, torch"),
    ):
        result = run(*options)
        assert result.returncode == 1
        assert message in result.stderr
    for options in (["input_size=[1,16,16]"], ["format=int8", "data=digits"]):
        result = run(*options)
        assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"net.safetensors", "net.onnx", "net.int8.onnx"}
    evaluate = [
        sys.executable,
        "-m",
        "jointsvd",
        "evaluate",
        f"checkpoint={tmp_path}/net.int8.onnx",
        "data=digits",
    ]
    assert "% of 360 test images" in subprocess.run(evaluate, capture_output=True, text=True).stdout
    assert (tmp_path / "net.int8.onnx").stat().st_size < 0.3 * (tmp_path / "net.onnx").stat().st_size


def test_a_file_that_computes_something_else_is_no_file(monkeypatch):
    monkeypatch.setattr(
        "jointsvd.deployment.export.onnx_session",
        lambda content: lambda images: 1.05 * onnx_session(content)(images),
    )
    with pytest.raises(RuntimeError, match="exported network's output differs by 5"):
        to_onnx(nn.Sequential(nn.Conv2d(1, 4, 3)).eval(), IMAGES)


def test_a_network_that_makes_much_of_rounding_is_exported():
    """What comes out of the second layer is small beside what cancels there."""
    inner, outer = nn.Linear(16, 512, bias=False), nn.Linear(512, 10, bias=False)
    spanned = torch.linalg.qr(inner.weight.detach())[0]
    large = 5e3 * torch.randn(10, 512)
    outer.weight = nn.Parameter(large - large @ spanned @ spanned.T + torch.randn(10, 512))
    model, images = nn.Sequential(inner, outer).eval(), torch.randn(8, 16)
    found = torch.from_numpy(onnx_session(to_onnx(model, images))(images))
    expected = model(images).detach()
    assert (found - expected).abs().max() > 1e-4 * expected.abs().max()
