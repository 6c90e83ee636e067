"""Factors that layers share, kept shared in int8: one grid of integers each, to which every user has scales of its own.

A user's batch norm, folded into its weights, multiplies each output channel by a number. Its size goes into the user's
scale and its sign too, so that the integers are those of the factor alone.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from jointsvd.network.extras import extra

with extra("onnx"):
    import numpy as np
    import onnx_ir

_LARGEST = 64  # of an int8 weight: two products with activations of up to 255 fit the 16 bits that some CPUs add in


class SharedFactors:
    """Which initializers the weights of an ONNX network's convs are made of, before batch norms are folded in.

    A weight is an initializer, or several joined along an axis (Bi-JSVD: along 0 in u, along 1 in v).
    """

    def __init__(self, model: onnx_ir.Model):
        self._parts: dict[str, tuple[list[str], int]] = {}
        self._values: dict[str, np.ndarray] = {}
        for node in _convs(model):
            joined, axis = _parts(node)
            if all(value.const_value is not None for value in joined):
                self._parts[str(node.name)] = [str(value.name) for value in joined], axis
                self._values |= {str(value.name): value.const_value.numpy() for value in joined if value.const_value}
        users = Counter(name for names, _ in self._parts.values() for name in names)
        self._shared = {name for name, count in users.items() if count > 1}
        self._parts = {conv: parts for conv, parts in self._parts.items() if self._shared & set(parts[0])}

    def align(self, model: onnx_ir.Model) -> dict[str, list[dict[str, Any]]]:
        """Round the weights of `model`, the same network with folded norms, to the grids of the factors that they
        share; returns their scales as ONNX Runtime takes them.

        Channels of one shared factor that other weights are joined to have the coarsest grid of all its users.
        """
        weights = {str(node.name): node.inputs[1] for node in _convs(model) if node.name in self._parts}
        norms = {conv: _norms(self._weight(conv), _numpy(weight)) for conv, weight in weights.items()}
        self._parts = {conv: parts for conv, parts in self._parts.items() if conv in norms and len(norms[conv])}
        bounds: dict[Any, Any] = defaultdict(float)
        for conv in self._parts:
            bounds[self._grid(conv)] = np.maximum(bounds[self._grid(conv)], _rows(abs(self._weight(conv))).max(axis=1))
        scales = {}
        for conv in self._parts:
            weight, norm, bound = weights[conv], norms[conv], bounds[self._grid(conv)]
            assert weight is not None
            step = np.where(bound > 0, bound / _LARGEST, 1.0)
            integers = np.round(_rows(self._weight(conv)) / step[:, None])
            rounded = (integers * (step * norm)[:, None]).reshape(self._weight(conv).shape)
            weight.const_value = onnx_ir.tensor(rounded.astype(np.float32), name=weight.name)
            own = np.where(norm == 0, step, step * abs(norm)).astype(np.float32)
            scales[str(weight.name)] = [{"axis": 0, "scale": scale, "zero_point": np.int8(0)} for scale in own]
        return scales

    def share(self, model: onnx_ir.Model) -> None:
        """Make the parts of each weight of `model`, quantised, initializers again, and one of those that are equal."""
        known: dict[tuple[str, bytes], onnx_ir.Value] = {}
        for node in list(_convs(model)):
            constants = [value.producer() for value in node.inputs[1:] if value]
            quantised = [constant for constant in constants if constant and constant.op_type == "DequantizeLinear"]
            if node.name not in self._parts or not quantised:
                continue
            integers = self._without_signs(model, node.name, quantised)
            values = []
            for name, part in self._split(node.name, integers):
                key = (name, part.tobytes())
                if key not in known:
                    known[key] = _initializer(model, f"{name}_{len(known)}", part)
                values.append(known[key])
            if len(values) > 1:
                join = onnx_ir.node("Concat", values, attributes={"axis": self._parts[node.name][1]})
                model.graph.insert_before(quantised[0], join)
                values = list(join.outputs)
            quantised[0].replace_input_with(0, values[0])

    def _without_signs(self, model: onnx_ir.Model, conv: str, quantised: Sequence[onnx_ir.Node]) -> np.ndarray:
        """The integers of a conv's weight with the signs of its factor; those of its norm go into the scales."""
        integers = _numpy(quantised[0].inputs[0])
        signs = np.where((_rows(integers) * _rows(self._weight(conv))).sum(axis=1) < 0, -1, 1)
        for constant in quantised[1:]:  # the bias
            _replace(model, constant, 0, _numpy(constant.inputs[0]) * signs.astype(np.int32))
        for constant in quantised:
            _replace(model, constant, 1, _numpy(constant.inputs[1]) * signs.astype(np.float32))
        return integers * signs.reshape(-1, 1, 1, 1).astype(np.int8)

    def _split(self, conv: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The parts of a weight's values, by the initializers that they are of."""
        names, axis = self._parts[conv]
        ends = np.cumsum([self._values[name].shape[axis] for name in names])[:-1]
        yield from zip(names, np.split(values, ends, axis), strict=True)

    def _weight(self, conv: str) -> np.ndarray:
        names, axis = self._parts[conv]
        return np.concatenate([self._values[name] for name in names], axis)

    def _grid(self, conv: str) -> Any:
        """What has the same steps: users of a factor that takes part in all channels, or a conv alone."""
        names, axis = self._parts[conv]
        return tuple(name for name in names if name in self._shared) if axis == 1 else conv


def _convs(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for node in model.graph if node.op_type == "Conv"]


def _parts(conv: onnx_ir.Node) -> tuple[list[onnx_ir.Value], int]:
    weight = conv.inputs[1]
    assert weight is not None
    join = weight.producer()
    if join is None or join.op_type != "Concat":
        return [weight], 0
    return [value for value in join.inputs if value], join.attributes["axis"].as_int()


def _norms(weight: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """What each channel of `weight` was multiplied by, or nothing if that does not give `folded`."""
    if weight.shape != folded.shape:
        return np.empty(0)
    before, after = (_rows(values).astype(np.float64) for values in (weight, folded))
    norms = (before * after).sum(axis=1) / np.maximum((before * before).sum(axis=1), 1e-30)
    return norms if np.allclose(norms[:, None] * before, after, rtol=1e-3, atol=1e-6 * abs(after).max()) else norms[:0]


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _numpy(value: onnx_ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace(model: onnx_ir.Model, node: onnx_ir.Node, index: int, values: np.ndarray) -> None:
    node.replace_input_with(index, _initializer(model, f"{node.inputs[index]}_{id(node)}", values))


def _initializer(model: onnx_ir.Model, name: str, values: np.ndarray) -> onnx_ir.Value:
    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.ascontiguousarray(values), name=name))
    model.graph.register_initializer(value)
    return value
