"""Networks as others write them: whatever their forwards, hooks and parameters do, `compress` is right, or says why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from jointsvd import Group, Plan, apply_plan, collect_statistics, compress, load_compressed, save_compressed
from jointsvd.network.layers import FactorPair

BATCHES = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Net(nn.Module):
    """A classifier; subclasses change how its middle runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def middle(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.middle(self.stem(x).relu()).relu().mean((2, 3)))


class Listed(Net):
    """As feature pyramids keep their layers."""

    def __init__(self):
        super().__init__()
        self.steps, self.named = [self.stem, (self.body,)], {"head": self.head}

    def forward(self, x):
        x = self.steps[1][0](self.steps[0](x).relu()).relu()
        return self.named["head"](x.mean((2, 3)))


class Checkpointed(Net):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def middle(self, x):
        return checkpoint(lambda t: self.body(t).relu(), x, use_reentrant=self.reentrant)


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class EndsInSoftmax(Net):
    def forward(self, x):
        return super().forward(x).softmax(-1)


class Remembers(Net):
    def middle(self, x):
        self.seen = {"last": [super().middle(x)]}
        return self.seen["last"][0]


class ReadsWhatItIs(Net):
    def middle(self, x):
        assert self.body.in_channels == x.shape[1]
        assert self.body.kernel_size == (3, 3)
        return self.body(input=x.to(self.body.weight.dtype)) + 0 * self.body.bias[:, None, None]


class ReadsTheWeight(Net):
    """The weight is used again, as a matrix."""

    def middle(self, x):
        return self.body(x) + F.conv2d(x, self.body.weight, padding=1)


class FrozenStem(Net):
    def forward(self, x):
        with torch.no_grad():
            x = self.stem(x).relu()
        return self.head(self.middle(x).relu().mean((2, 3)))


class Squeezes(Net):
    def forward(self, x):
        return super().forward(x).squeeze()


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 48, batch_first=True), 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def twice(module, inputs, output):
    return 2 * output


class Mine(nn.Conv2d):
    pass


def changed(change):
    model = Net()
    change(model)
    return model


def factored(result):
    return {name for name, module in result.model.named_modules() if isinstance(module, FactorPair)}


RUN = {
    "listed": Listed, "checkpointed": lambda: Checkpointed(False),
    "checkpointed, reentrant": lambda: Checkpointed(True), "autocast": Autocast,
    "softmax": EndsInSoftmax, "remembers": Remembers, "reads": ReadsWhatItIs,
    "reads the weight": ReadsTheWeight, "frozen stem": FrozenStem, "squeezes": Squeezes, "in place": InPlace,
    "encoder": Encoder,
}  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_what_comes_out_is_seen_loaded_and_near(name, tmp_path):
    model = RUN[name]().eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    batches = [*BATCHES, BATCHES[0][:1]]  # the last batch is one image
    result = compress(model, [batch.clone() for batch in batches], params=1.3)
    assert factored(result)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert "seen" not in vars(model)
    ran = set()
    result.model.eval()
    for layer in factored(result):
        result.model.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: ran.add(layer))
    save_compressed(tmp_path / "small", result.model, result.plan)
    loaded = load_compressed(tmp_path / "small", RUN[name]()).eval()
    with torch.no_grad():
        found, expected = result.model(BATCHES[0].clone()), model(BATCHES[0].clone())
        assert ran == factored(result)
        torch.testing.assert_close(loaded(BATCHES[0].clone()), found)
        assert 0 < F.mse_loss(found, expected) < 0.3 * expected.var()


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed, reentrant", "autocast", "softmax"])
def test_moments_are_those_of_the_plain_network(name):
    plain, other = (collect_statistics(RUN[kind]().eval(), BATCHES) for kind in ("plain", name))
    rounding = 0.05 if name == "autocast" else 1e-4
    for one, its in ((plain.inputs, other.inputs), (plain.outputs, other.outputs)):
        assert one.keys() == its.keys()
        for layer, moment in one.items():
            assert (its[layer] - moment).norm() < rounding * moment.norm()


RUN["plain"] = Net


def test_moments_under_autocast_are_in_float32():
    """Products of bfloat16 are wrong by far more than the smallest eigenvalues of what they should be."""
    model = Autocast().eval()
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.stem(torch.cat(BATCHES)).relu().float()
    x = F.pad(seen, (0, 0, 1, 1))
    strips = torch.stack([x[:, :, f : f + 12] for f in range(3)], 1).permute(0, 3, 4, 1, 2).reshape(-1, 48).double()
    found = collect_statistics(model, BATCHES).inputs["body"].mean(0)
    torch.testing.assert_close(found, strips.T @ strips / 24, rtol=1e-4, atol=1e-5 * float(found.max()))


@pytest.mark.parametrize("what", ["hook", "pre-hook", "backward hook", "forward"])
def test_a_layer_that_somebody_added_to_stays_and_is_named(what):
    model = Net().eval()
    match what:
        case "hook":
            model.body.register_forward_hook(twice)
        case "pre-hook":
            model.body.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        case "backward hook":
            model.body.register_full_backward_hook(lambda *_: None)
        case "forward":
            model.body.forward = lambda x: 2 * F.conv2d(x, model.body.weight, padding=1)
    expected = model(BATCHES[0])
    result = compress(model, BATCHES, params=1.1)
    assert factored(result) <= {"stem", "head"}
    (line,) = [line for line in result.untouched if line["name"] == "body"]
    assert line["reason"] == ("has a patched forward of its own" if what == "forward" else "has hooks of its own")
    assert F.mse_loss(result.model(BATCHES[0]), expected) < 0.3 * expected.var()
    with pytest.raises(ValueError, match="would lose them; remove them"):
        apply_plan(model, Plan((Group(("body",), 0, 4),)))


def weight_norm(model):
    nn.utils.weight_norm(model.body)


def spectral_norm(model):
    nn.utils.spectral_norm(model.body)
    model(BATCHES[0])


def pruned(model):
    prune.l1_unstructured(model.body, "weight", 0.5)


def parametrized(model):
    parametrizations.weight_norm(model.body)


def orthogonal(model):
    parametrizations.orthogonal(model.head)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, spectral_norm, pruned, parametrized, orthogonal])
def test_weights_that_are_computed_are_baked_in(change, tmp_path):
    model = changed(change).train()
    name = "head" if change is orthogonal else "body"
    rank = 5 if change is orthogonal else 48
    whole = apply_plan(model, Plan((Group((name,), 0, rank),)))
    torch.testing.assert_close(whole.eval()(BATCHES[0]), model.eval()(BATCHES[0]), atol=1e-4, rtol=1e-4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = compress(model, BATCHES, params=1.3)
    assert {"body"} <= factored(result)
    assert sum(p.numel() for p in result.model.parameters()) * 1.3 <= sum(p.numel() for p in Net().parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    save_compressed(tmp_path / "small", result.model, result.plan)
    loaded = load_compressed(tmp_path / "small", changed(change)).eval()
    torch.testing.assert_close(loaded(BATCHES[0]), result.model.eval()(BATCHES[0]))


def test_layers_that_run_without_gradients_are_named():
    result = compress(FrozenStem().eval(), BATCHES, params=1.2)
    reasons = {line["name"]: line["reason"] for line in result.untouched}
    assert reasons == {"stem": "runs under torch.no_grad, so that nothing tells how much it matters"}


def test_a_network_without_gradients_is_refused():
    class Frozen(Net):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ValueError, match=r"no gradient comes back.*torch\.no_grad"):
        compress(Frozen().eval(), BATCHES, params=1.2)


def test_in_inference_mode():
    with torch.inference_mode():
        model, batches = Net().eval(), [batch.clone() for batch in BATCHES]
        expected = compress(Net().eval(), BATCHES, params=1.3)
        result = compress(model, batches, params=1.3)
    assert result.plan == expected.plan
    result.model(BATCHES[0]).sum().backward()


def test_frozen_weights_marks_and_memory_formats_stay():
    model = Net().to(memory_format=torch.channels_last)
    model.body.weight.requires_grad_(False)
    model.body.weight.no_weight_decay = model.body.bias.lr_scale = 0.1
    body = compress(model.eval(), BATCHES, params=1.3, share=False).model.body
    assert isinstance(body, FactorPair)
    assert [p.requires_grad for p in (body.u.weight, body.v.weight, body.bias)] == [False, False, True]
    assert body.u.weight.no_weight_decay == body.v.weight.no_weight_decay == body.bias.lr_scale == 0.1
    assert not hasattr(body.bias, "no_weight_decay")
    for weight in (body.u.weight, body.v.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_every_layer_with_parameters_is_in_the_report():
    class Odd(Net):
        def __init__(self):
            super().__init__()
            self.mine, self.grouped = Mine(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)

        def middle(self, x):
            return self.grouped(self.mine(self.body(x)))

    model = Odd().eval()
    result = compress(model, BATCHES, params=1.2)
    chosen = {name for line in result.report for name in line["layers"]}
    named = {line["name"]: line for line in result.untouched}
    assert chosen | named.keys() == {name for name, module in model.named_modules() if name and "." not in name}
    total = sum(p.numel() for p in model.parameters())
    assert named["mine"]["share"] == pytest.approx(100 * sum(p.numel() for p in model.mine.parameters()) / total)


def test_a_layer_that_factors_cannot_reach_is_refused_before_long_work():
    class Hidden(Net):
        def __init__(self):
            super().__init__()
            self.cache = {"layers": frozenset([self.body])}  # what copies find, but nothing can be replaced in

        def middle(self, x):
            (layer,) = self.cache["layers"]
            return layer(x)

    with pytest.raises(ValueError, match=r"body: the forward reaches this layer by another way.*self\.NAME"):
        compress(Hidden().eval(), BATCHES, params=1.3)


def test_a_forward_that_factors_break_is_named_before_long_work(monkeypatch):
    class Picky(Net):
        def middle(self, x):
            assert isinstance(self.body, nn.Conv2d), "no conv"
            return self.body(x)

    monkeypatch.setattr("jointsvd.compression.compressed.collect_statistics", None)  # it is not reached
    with pytest.raises(ValueError, match=r"with factors in the place of its layers, .*no conv"):
        compress(Picky().eval(), BATCHES, params=1.3)


def test_images_that_affect_each_other_are_refused_before_long_work(monkeypatch):
    class Centred(Net):
        def forward(self, x):
            return super().forward(x - x.mean(0, keepdim=True))

    monkeypatch.setattr("jointsvd.compression.compressed.collect_statistics", None)
    with pytest.raises(ValueError, match="affect each other"):
        compress(Centred().eval(), BATCHES, params=1.3)


def test_a_network_that_cannot_be_copied_is_refused():
    model = Net().eval()
    model.generator = (layer for layer in [model.body])
    with pytest.raises(ValueError, match=r"Net cannot be copied: make copy\.deepcopy"):
        compress(model, BATCHES, params=1.3)


def test_a_run_that_fails_leaves_the_network_as_it_was(monkeypatch):
    model = Remembers().train()
    model.body.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    monkeypatch.setattr("jointsvd.compression.compressed.agreement", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compress(model, BATCHES, params=1.3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "seen" not in vars(model)
