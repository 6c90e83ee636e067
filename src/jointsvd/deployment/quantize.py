"""An ONNX network in int8, by ONNX Runtime: weights per channel, activations per tensor, shared factors once.

Weights are integers of 7 bits: processors without VNNI add two products at a time in 16 bits, and those of 8 overflow.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from jointsvd.deployment.onnx_runtime import onnx_session, quiet
from jointsvd.deployment.quantize_shared import SharedFactors
from jointsvd.network.extras import extra

with extra("onnx"):
    import numpy as np
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateHashedInitializersPass
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

_PERCENTILE = 99.999  # of an activation's values; what is beyond is clipped


def to_int8(content: bytes, batches: Sequence[Tensor]) -> bytes:
    """The ONNX network `content` (of `to_onnx`), quantised statically (QDQ) on calibration images, (N, C, H, W) each.

    ONNX Runtime keeps the activations of all images in memory meanwhile. Raises ValueError for no images, or ones that
    the network does not take, and RuntimeError if leaving out what computes nothing changed the outputs.
    """
    if not batches or not all(len(batch) for batch in batches):
        raise ValueError("int8 needs calibration images: give some hundred")
    with quiet():
        try:
            whole, factors = _quantised(content, batches)
        except Exception as error:  # ONNX Runtime has a class for each kind
            shape = tuple(batches[0].shape)
            raise ValueError(f"the network cannot be quantised on images {shape}: {error}") from error
        model = onnx_ir.from_proto(onnx.load_model_from_string(whole))
        factors.share(model)
        _shrink(model)
        small = onnx_ir.to_proto(model).SerializeToString()
        expected, found = (onnx_session(file)(batches[0].cpu()) for file in (whole, small))
    if not np.allclose(expected, found, rtol=0, atol=1e-5 * abs(expected).max()):
        raise RuntimeError("shrinking the int8 file changed what it computes")
    return small


def quantised(content: bytes, batches: Sequence[Tensor]) -> bytes:
    """What `to_int8` makes smaller: it runs alike, and its nodes have the names of those of `content`."""
    with quiet():
        return _quantised(content, batches)[0]


def _quantised(content: bytes, batches: Sequence[Tensor]) -> tuple[bytes, SharedFactors]:
    """The network as ONNX Runtime quantises it, with shared factors on one grid of integers, and these factors."""
    with tempfile.TemporaryDirectory() as folder:
        whole, ready, small = (str(Path(folder, name)) for name in ("whole.onnx", "ready.onnx", "int8.onnx"))
        Path(whole).write_bytes(content)
        quant_pre_process(whole, ready, skip_symbolic_shape=True)
        factors = SharedFactors(onnx_ir.load(whole))
        aligned = onnx_ir.load(ready)
        scales = factors.align(aligned)
        onnx_ir.save(aligned, ready)
        quantize_static(
            ready,
            small,
            _Images(batches),
            per_channel=True,
            reduce_range=True,  # weights of 7 bits
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": _PERCENTILE, "TensorQuantOverrides": scales},
        )
        return Path(small).read_bytes(), factors


class _Images(CalibrationDataReader):
    def __init__(self, batches: Sequence[Tensor]):
        self.batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy(force=True)}


def _shrink(model: onnx_ir.Model) -> None:
    """Leave out what computes nothing: zero points of 0, equal constants, long names, shapes in between."""
    graph = model.graph
    for node in graph:
        zero = node.inputs[2] if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 else None
        if zero is not None and zero.const_value is not None and not zero.const_value.numpy().any():
            signed = zero.const_value.dtype in (onnx_ir.DataType.INT8, onnx_ir.DataType.INT32)
            if signed:  # what is left out is 0 of the type of the values
                node.replace_input_with(2, None)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    for clean in (ClearMetadataAndDocStringPass(), DeduplicateHashedInitializersPass()):
        clean(model)
    for index, value in enumerate(list(graph.initializers.values())):
        value.name = f"w{index}"
    outputs = set(graph.outputs)
    for node in graph:
        node.name = ""
    between = [value for node in graph for value in node.outputs if value not in outputs]
    for index, value in enumerate(between):
        value.name, value.type, value.shape = f"x{index}", None, None
