"""How a network is asked and what of its answer counts: `forward`, `output` and `loss` of `compress`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.compression import batches, losses


@dataclass(frozen=True)
class Task:
    """forward: a function of the network and a batch, by default ``model(images)``. output: a function that takes what
    counts out of what `forward` returns, by default the one tensor in it that can be logits. loss: "classes" (logits in
    dimension 1; probabilities are seen to be some), "binary" (logits of yes and no), "gaussian" (numbers, embeddings,
    images: a squared error in units of their variance), or a function of the output that gives a scalar, summed over
    the batch. Raises ValueError for another loss."""

    forward: Callable[[nn.Module, Any], Any] | None = None
    output: Callable[[Any], Any] | None = None
    loss: losses.Kind | Callable[[Any], Tensor] = "classes"

    def __post_init__(self) -> None:
        losses.checked(self.loss)

    @property
    def kind(self) -> losses.Kind | None:
        """None for a function of the user's."""
        return None if callable(self.loss) else self.loss

    def batch(self, given: Any) -> Any:
        """What `forward` gets of a batch of the loader: all of it, or by default the images alone, labels left out.
        Raises ValueError for what holds no images."""
        if self.forward is None and isinstance(given, list | tuple) and given:
            given = given[0]
        if self.forward is None and isinstance(given, Mapping):
            raise ValueError(
                f"a calibration batch is a dictionary of {', '.join(map(str, given))}: say how the network takes it, "
                "by forward=lambda model, batch: model(**batch)"
            )
        if self.forward is None and not _are_images(given):
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"calibration needs batches of images as floats, or tuples that begin with one; got {got}: give "
                "forward=lambda model, batch: ... for others"
            )
        floats = [x for x in batches.tensors(given) if x.is_floating_point() and not x.is_meta]
        if not batches.size(given) or not all(tensor.isfinite().all() for tensor in floats):
            raise ValueError("a calibration batch is empty, or holds NaN or infinite values")
        return given

    def ask(self, model: nn.Module, batch: Any) -> Any:
        """All that the network returns."""
        return model(batch) if self.forward is None else self.forward(model, batch)

    def run(self, model: nn.Module, batch: Any) -> Any:
        """The output that counts, (N, ...) unless the loss is a function. Raises ValueError where the network cannot
        run, or returns nothing of that kind."""
        try:
            answer = self.ask(model, batch)
            answer = answer if self.output is None else self.output(answer)
        except Exception as error:  # whatever a network may say
            ways = "" if self.forward else "; give forward=lambda model, batch: ... if it takes something else"
            raise ValueError(f"the model cannot run on a calibration batch {_words(batch)}: {error}{ways}") from error
        if self.kind is None:
            return answer
        output = _only(answer, self.kind, batches.size(batch)) if self.output is None else answer
        return self._checked(output, batches.size(batch))

    def _checked(self, output: Any, num: int) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ValueError(
                f"output= must give a tensor of floats, one part an image; it gave {type(output).__name__}"
            )
        if num == 1 and (not output.ndim or len(output) != 1):
            output = output[None]  # a network that squeezes what it returns
        if not output.ndim or len(output) != num:
            raise ValueError(
                f"the output {tuple(output.shape)} is not of {num} images: choose with output=lambda y: ..."
            )
        output = output[:, None] if output.ndim == 1 else output
        assert self.kind
        losses.check(self.kind, output)
        return output

    def value(self, output: Any) -> Tensor:
        """The scalar of a function of the user's. Raises ValueError if it is none."""
        assert callable(self.loss)
        value = self.loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError("loss= must give a scalar tensor, the sum over the images of the batch")
        return value.reshape(())


def _are_images(given: Any) -> bool:
    return isinstance(given, Tensor) and given.ndim >= 2 and given.is_floating_point()


def _words(batch: Any) -> str:
    return ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in batches.tensors(batch))


def _only(answer: Any, kind: losses.Kind, num: int) -> Tensor:
    """The one tensor in an answer that can be what the loss is for: one part an image, and for classes two logits or
    more. Of several, that which is called logits. Raises ValueError, naming them, if there is no such one."""
    if isinstance(answer, Tensor):
        return answer
    every = {path: tensor for path, tensor in _tensors(answer, "y") if tensor.is_floating_point()}
    found = {path: x for path, x in every.items() if x.ndim and len(x) == num and (x.ndim > 1 or kind != "classes")}
    if kind == "classes":
        found = {path: tensor for path, tensor in found.items() if tensor.shape[1] > 1}
    named = [path for path in found if path in ('y["logits"]', "y.logits")]
    if len(found) != 1 and len(named) != 1:
        shown = ", ".join(f"{path} {tuple(x.shape)}" for path, x in (found or every).items()) or type(answer).__name__
        many = "several outputs can be" if found else "no output is one tensor of two or more"
        example = next(iter(found or every), "y[0]")
        raise ValueError(
            f"{many} logits, among {shown}: choose with output=lambda y: {example}"
            + ("" if found else ', with loss="gaussian" or a loss of yours')
        )
    return found[named[0]] if len(found) != 1 else next(iter(found.values()))


def _tensors(answer: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an answer, with what reaches them."""
    if isinstance(answer, Tensor):
        yield path, answer
    elif isinstance(answer, Mapping):
        for key, value in answer.items():
            yield from _tensors(value, f'{path}["{key}"]')
    elif is_dataclass(answer):
        for field in fields(answer):
            yield from _tensors(getattr(answer, field.name), f"{path}.{field.name}")
    elif isinstance(answer, list | tuple):
        for index, value in enumerate(answer):
            yield from _tensors(value, f"{path}[{index}]")


def beside(model: nn.Module, batch: Any) -> Any:
    """`batch` on the model's device. Raises ValueError if either is on the meta device, which holds no values."""
    first = next(batches.tensors(batch))
    device = next((parameter.device for parameter in model.parameters()), first.device)
    for what, where in (("the model", device), ("a calibration batch", first.device)):
        if where.type == "meta":
            raise ValueError(f"{what} is on the meta device, without values: calibration needs them on a real one")
    return batches.mapped(lambda tensor: tensor.to(device), batch)


def differentiable(batch: Any) -> Any:
    """The batch with copies of its floats that gradients come back to, which a network may change in place."""

    def copy(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
        return tensor.requires_grad_().clone()

    with torch.enable_grad():
        return batches.mapped(copy, batch)
