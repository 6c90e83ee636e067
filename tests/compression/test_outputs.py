"""Outputs that are no (N, K) logits, batches that are no images alone, and losses that are not of classes."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jointsvd import collect_statistics, compress
from jointsvd.compression.agreement import agreement
from jointsvd.compression.task import Task

BATCHES = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Net(nn.Module):
    def __init__(self, answer=lambda y: y, outputs=5):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.answer = nn.Linear(16, outputs), answer

    def forward(self, x):
        return self.answer(self.head(self.body(self.stem(x).relu()).relu().mean((2, 3))))


class UNet(nn.Module):
    """Maps of `channels` values: of classes, a mask, an image."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.low = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, 2, 1)
        self.up, self.join = nn.ConvTranspose2d(24, 16, 2, 2), nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Conv2d(16, channels, 1)
        self.head.bias.data -= 1

    def forward(self, x):
        high = self.down(x).relu()
        return self.head(self.join(torch.cat([high, self.up(self.low(high).relu())], 1)).relu())


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor
    loss: torch.Tensor | None = None


Pair = namedtuple("Pair", "classes mean")


def moments(model, **task):
    return collect_statistics(model.eval(), BATCHES, task=Task(**task)).outputs


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: {"logits": y, "features": y[:, None].repeat(1, 7, 1)},
        lambda y: OrderedDict(out=y, scale=y.mean()),
        lambda y: (y, y.mean(1), y.argmax(1)),
        lambda y: Pair(y, y.mean()),
        lambda y: Answer(y, y[:, :3]),
        lambda y: {"outputs": [Answer(y, y.sum())]},
    ],
)
def test_the_one_tensor_that_looks_like_logits(answer):
    expected, found = moments(Net()), moments(Net(answer))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    result = compress(Net(answer).eval(), BATCHES, params=1.3)
    assert result.held_out["top1_agreement"] is not None
    assert type(result.model(BATCHES[0])) is type(answer(torch.zeros(2, 5)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda y: {"out": y, "aux": y},
            r'y\["out"\] \(7, 5\), y\["aux"\] \(7, 5\): choose with output=lambda y: y\["out"',
        ),
        (lambda y: [y.mean(), {"ids": y.argmax(1)}], r"no output is one tensor.*y\[0\] \(\).*loss=.gaussian"),
        (lambda y: "nothing", "no output is one tensor.*among str"),
        (lambda y: y.argmax(1), "must give a tensor of floats"),
        (lambda y: y.flatten(), r"the output \(35,\) is not of 7 images"),
        (lambda y: y[:, :1], r"two or more logits in dimension 1.*loss=.gaussian.*loss=.binary"),
    ],
)
def test_several_or_none(answer, message):
    with pytest.raises(ValueError, match=message):
        compress(Net(answer).eval(), BATCHES, params=1.3)


def test_output_takes_what_counts():
    model = Net(lambda y: {"out": y, "aux": 3 * y})
    expected, found = moments(Net()), moments(model, output=lambda y: y["out"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r"cannot run on a calibration batch .*'other'"):
        compress(model.eval(), BATCHES, params=1.3, output=lambda y: y["other"])


def test_classes_of_maps_are_in_dimension_1():
    """A map of one position says what a classifier does, and one of many is the sum of its positions."""
    flat, mapped = Net(), Net(lambda y: y[:, :, None, None].expand(-1, -1, 1, 3))
    expected, found = moments(flat), moments(mapped)
    for name in expected:
        traces = [float(moment[name].mean(0).trace()) for moment in (found, expected)]
        assert traces[0] == pytest.approx(3 * traces[1], rel=0.4)
    other = Net()
    other.head.bias.data[0] += 1
    kl = agreement(flat, other, BATCHES).kl
    other.answer = mapped.answer
    assert agreement(mapped, other, BATCHES).kl == pytest.approx(3 * kl)


@pytest.mark.parametrize(("channels", "task"), [(4, {}), (1, {"loss": "binary"}), (3, {"loss": "gaussian"})])
def test_a_u_net(channels, task):
    model = UNet(channels).eval()
    result = compress(model, BATCHES, params=1.5, **task)
    assert {line["layers"][0] for line in result.report if line["rank"]} <= {"down", "low", "up.inner", "join", "head"}
    with torch.no_grad():
        found, expected = result.model(BATCHES[0]), model(BATCHES[0])
    assert F.mse_loss(found, expected) < 0.2 * expected.var()
    assert (result.held_out["top1_agreement"] is None) == (channels == 3)


def test_a_mask_is_no_classes_and_no_probability():
    with pytest.raises(ValueError, match=r"two or more logits in dimension 1, the output is \(7, 1, 12, 12\)"):
        compress(UNet(1).eval(), BATCHES, params=1.5)
    model = UNet(1).eval()
    with pytest.raises(ValueError, match=r"needs logits.*output=lambda y: y\.logit"):
        compress(model, BATCHES, params=1.5, loss="binary", output=torch.sigmoid)


def test_binary_gradients_have_the_exact_second_moment():
    """p (1 - p) for each logit, measured behind the last layer."""
    found = moments(Net(outputs=2), loss="binary")["head"].mean(0)
    p = Net(outputs=2)(torch.cat(BATCHES)).sigmoid()
    torch.testing.assert_close(found.diagonal(), (p * (1 - p)).mean(0).double(), rtol=0.6, atol=0)


def test_numbers_are_measured_in_units_of_their_own_variance():
    one, hundred = (moments(Net(lambda y, s=s: s * y, 1), loss="gaussian") for s in (1, 100))
    for name in one:
        torch.testing.assert_close(one[name], hundred[name], rtol=1e-3, atol=1e-6 * float(one[name].abs().max()))
    variance = Net(outputs=1)(torch.cat(BATCHES)).var(correction=0)
    assert float(one["head"].mean()) == pytest.approx(1 / float(variance), rel=0.5)
    results = [compress(Net(lambda y, s=s: s * y, 1).eval(), BATCHES, params=1.5, loss="gaussian") for s in (1, 100)]
    assert results[0].plan.groups == results[1].plan.groups
    assert results[0].held_out["kl"] == pytest.approx(results[1].held_out["kl"], rel=0.1)
    assert results[0].held_out["top1_agreement"] is None


def test_outputs_of_one_number_an_image_without_a_dimension():
    result = compress(Net(lambda y: y[:, 0]).eval(), BATCHES, params=1.5, loss="gaussian")
    assert result.held_out["kl"] >= 0


def test_a_loss_of_the_users():
    def loss(y):
        return y["boxes"].square().sum() + y["scores"].logsumexp(1).sum()

    model = Net(lambda y: {"boxes": y[:, :2], "scores": y[:, 2:]}).eval()
    result = compress(model, BATCHES, params=1.3, loss=loss)
    assert any(line["rank"] for line in result.report)
    assert result.held_out["top1_agreement"] is None
    assert result.held_out["kl"] >= 0
    with pytest.raises(ValueError, match="loss= must give a scalar"):
        compress(model, BATCHES, params=1.3, loss=lambda y: y["boxes"])
    with pytest.raises(ValueError, match=r"loss is one of classes, binary, gaussian.*got 'mse'"):
        compress(model, BATCHES, params=1.3, loss="mse")


class TwoInputs(Net):
    def forward(self, x, other):
        return super().forward(x) + super().forward(other)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_batches_that_are_no_images_alone(kind):
    model = TwoInputs().eval()
    if kind == "tuple":
        batches = [(x, x.flip(3), ["name"] * 8) for x in BATCHES]
        forward = lambda model, batch: model(batch[0], batch[1])  # noqa: E731
    else:
        batches = [{"x": x, "other": x.flip(3), "note": "?"} for x in BATCHES]
        forward = lambda model, batch: model(batch["x"], batch["other"])  # noqa: E731
    result = compress(model, batches, params=1.3, forward=forward)
    assert any(line["rank"] for line in result.report)
    assert result.held_out["images"] == 3


def test_batches_that_the_default_cannot_take():
    with pytest.raises(ValueError, match=r"missing 1 required positional argument.*give forward=lambda model, batch"):
        compress(TwoInputs().eval(), BATCHES, params=1.3)
    with pytest.raises(ValueError, match=r"a dictionary of x, other: .*forward=lambda model, batch: model"):
        compress(TwoInputs().eval(), [{"x": x, "other": x} for x in BATCHES], params=1.3)
    with pytest.raises(ValueError, match=r"budget of time is measured on model\(images\)"):
        compress(Net().eval(), BATCHES, faster=2, forward=lambda model, batch: model(batch))


def test_tokens():
    """Integers in, to which no gradient comes back."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(9, 16), nn.Linear(16, 48), nn.Linear(48, 5)

        def forward(self, ids, mask):
            return self.down((self.up(self.table(ids)).relu() * mask[..., None]).mean(1))

    ids = torch.arange(8 * 6).reshape(8, 6) % 9
    batch = {"ids": ids, "mask": torch.ones(8, 6)}
    result = compress(Words().eval(), [batch] * 3, params=1.2, forward=lambda model, batch: model(**batch))
    assert any(line["rank"] for line in result.report)
