"""A network as a file that runs without jointsvd: ONNX, or torch.export.

A shared factor is stored once and used by all its layers, in ONNX as one initializer.
"""

import warnings
from io import BytesIO

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd.deployment.onnx_runtime import onnx_session, quiet
from jointsvd.network.copying import copied
from jointsvd.network.extras import extra
from jointsvd.network.shared import check_sharing

with extra("onnx"):
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
    from onnxscript.optimizer import optimize_ir

TOLERANCE = 1e-4  # of the largest output
ROUNDINGS = 10  # times what the network's own outputs in float32 are off, where that is more


def to_onnx(network: nn.Module, example: Tensor) -> bytes:
    """An ONNX file of `network` for batches of any size; its output is compared with PyTorch's in ONNX Runtime.

    example: (N, ...) two or more images on the network's device. The graph's input is "images", its output "logits".
    Raises ValueError for a network in training mode, on another device, whose shared factors came apart, or that cannot
    run on `example`, and RuntimeError if the outputs differ by more than TOLERANCE and by more than ROUNDINGS times
    what PyTorch's own are off from those in float64: some networks make much of rounding.
    """
    expected = _outputs(network, example)
    plain = _with_plain_norms(network)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            plain,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
            optimize=False,
        )
        assert program is not None
        optimize_ir(program.model, should_fold=_fold)
        for clean in (ClearMetadataAndDocStringPass(), DeduplicateInitializersPass()):
            clean(program.model)
    outputs = set(program.model.graph.outputs)
    for value in {value for node in program.model.graph for value in node.outputs} - outputs:
        value.shape = value.type = None  # ONNX Runtime infers them
    content = onnx_ir.to_proto(program.model).SerializeToString()
    _check(network, example, expected, torch.from_numpy(onnx_session(content)(example.cpu())))
    return content


def _fold(node: onnx_ir.Node) -> bool | None:
    """Not the factors of Bi-JSVD: those that layers share are in the file once. Others as the optimizer likes."""
    weights = node.op_type == "Concat" and all(value is not None and value.is_initializer() for value in node.inputs)
    return False if weights else None


def to_torch(network: nn.Module, example: Tensor) -> bytes:
    """A torch.export file of `network` for batches of any size, for `torch.export.load`. Raises as `to_onnx`."""
    expected = _outputs(network, example)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = BytesIO()
    torch.export.save(program, file)
    with torch.no_grad():
        _check(network, example, expected, torch.export.load(BytesIO(file.getvalue())).module()(example).cpu())
    return file.getvalue()


@torch.no_grad()
def _outputs(network: nn.Module, example: Tensor) -> Tensor:
    check_sharing(network)
    device = next(network.parameters()).device
    if any(module.training for module in network.modules()) or example.device != device or len(example) < 2:
        mode = "training" if any(module.training for module in network.modules()) else "evaluation"
        raise ValueError(
            f"export needs a network in evaluation mode (call .eval()) and two images on its device, {device}; got "
            f"{tuple(example.shape)} on {example.device}, and a network in {mode} mode"
        )
    if (dtype := next(network.parameters()).dtype) != torch.float32:
        raise ValueError(f"export needs a network in float32, got {dtype}; call network.float()")
    try:
        return network(example).cpu()
    except RuntimeError as error:
        raise ValueError(f"the network cannot run on images {tuple(example.shape)}: {error}") from error


def _check(network: nn.Module, example: Tensor, expected: Tensor, found: Tensor) -> None:
    error = _difference(found, expected)
    if not error <= TOLERANCE and not error <= ROUNDINGS * _rounding(network, example, expected):
        raise RuntimeError(f"the exported network's output differs by {error:.1e} of the largest one")


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))


@torch.no_grad()
def _rounding(network: nn.Module, example: Tensor, expected: Tensor) -> float:
    """How far the outputs are from those in float64; 0 for a network that does not run there."""
    try:
        return _difference(expected, copied(network).double()(example.double()).cpu())
    except (RuntimeError, TypeError, ValueError):
        return 0.0


def _with_plain_norms(network: nn.Module) -> nn.Module:
    """A copy whose batch norms have mean 0 and variance 1, which are stored once; weight and bias do the rest."""
    copy = copied(network)
    for norm in copy.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            scale = (norm.running_var + norm.eps).rsqrt()
            weight = scale if norm.weight is None else scale * norm.weight
            bias = -norm.running_mean * weight + (0 if norm.bias is None else norm.bias)
            norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
            norm.running_mean, norm.running_var = torch.zeros_like(bias), torch.full_like(bias, 1 - norm.eps)
    return copy
