import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jointsvd import Group, Plan, build_structure, load_compressed, plan_compression, save_compressed
from jointsvd.network.files import load_with_header, read_metadata
from jointsvd.network.methods import WITH_RANK_RATE
from jointsvd.network.surgery import apply_plan, check_structure
from jointsvd.training.models import build_model

SMALL_LAYERS = ["layer[23].*.conv*"]  # of resnet18: quick to decompose


def aliases(model):
    """The names under which each parameter stands."""
    named = list(model.named_parameters(remove_duplicate=False))
    return sorted([name for name, other in named if other is parameter] for parameter in model.parameters())


def dense(name="resnet18"):
    return build_model(name, num_classes=10)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = dense()
    plan = plan_compression(model, "bijsvd", rank_rate=0.05, layers=SMALL_LAYERS)
    path = tmp_path_factory.mktemp("files") / "network.safetensors"
    save_compressed(path, apply_plan(model, plan), plan)
    return path


@pytest.mark.parametrize("method", WITH_RANK_RATE)
def test_what_is_loaded_is_what_was_saved(tmp_path, method):
    model = dense()
    plan = plan_compression(model, method, rank_rate=0.1, layers=SMALL_LAYERS)
    network = apply_plan(model, plan)
    for tensor in [*network.parameters(), *network.buffers()]:  # else a load that does nothing would pass
        tensor.data = tensor.data + torch.rand_like(tensor.data, dtype=torch.float32).to(tensor.dtype)
    path = tmp_path / "network.safetensors"
    save_compressed(path, network, plan)

    loaded = load_compressed(path, dense())
    state = network.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert aliases(loaded) == aliases(network)
    assert Plan.from_json(read_metadata(path)["plan"]) == plan

    tensors = [*network.parameters(), *network.buffers()]
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert payload <= path.stat().st_size <= 1.03 * payload


def test_dense_networks_and_other_dtypes(tmp_path):
    model = dense().to(torch.bfloat16)
    path = tmp_path / "dense.safetensors"
    save_compressed(path, model, Plan(), metadata={"note": "hello"})
    loaded = load_compressed(path, dense())
    assert loaded.fc.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    assert read_metadata(path)["note"] == "hello"


def test_a_network_trained_from_scratch_is_saved_alike(tmp_path):
    plan = plan_compression(dense(), "ljsvd", rank_rate=0.05)
    network = build_structure(dense(), plan)
    save_compressed(tmp_path / "scratch", network, plan)
    loaded = load_compressed(tmp_path / "scratch", dense())
    assert torch.equal(loaded.layer2[0].conv2.u.weight, network.layer2[0].conv2.u.weight)


def test_a_network_on_the_meta_device_gets_its_weights_on_the_cpu(saved):
    with torch.device("meta"):
        empty = dense()
    loaded, expected = load_compressed(saved, empty).eval(), load_compressed(saved, dense()).eval()
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert aliases(loaded) == aliases(expected)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), expected(images))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())


class Scaled(torch.nn.Module):
    """Has a value that its state dict leaves out, as a buffer or as a plain attribute."""

    def __init__(self, *, buffer):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        if buffer:
            self.register_buffer("scale", torch.ones(2), persistent=False)
        else:
            self.scale = torch.ones(2)


@pytest.mark.parametrize("buffer", [True, False])
def test_what_no_file_has_cannot_come_from_the_meta_device(tmp_path, buffer):
    path = tmp_path / "network.safetensors"
    save_compressed(path, Scaled(buffer=buffer), Plan())
    assert torch.equal(load_compressed(path, Scaled(buffer=buffer)).scale, torch.ones(2))
    with torch.device("meta"):
        empty = Scaled(buffer=buffer)
    with pytest.raises(ValueError, match="scale is not saved with the weights"):
        load_compressed(path, empty)


def test_the_header_is_read_without_the_weights(saved, tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(saved.read_bytes()[:-1] + b"?")
    assert read_metadata(path) == read_metadata(saved)
    with pytest.raises(ValueError, match="changed after it was written"):
        load_compressed(path, dense())
    path.write_bytes(saved.read_bytes().replace(b"jointsvd-plan", b"another--plan"))
    with pytest.raises(ValueError, match="changed after it was written: not a jointsvd-plan"):
        read_metadata(path)
    path.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        read_metadata(path)


def test_network_and_header_in_one_reading(saved, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "jointsvd.network.files.safe_open", lambda *args, **options: opened.append(args) or safe_open(*args, **options)
    )
    network, header = load_with_header(saved, dense())
    assert len(opened) == 1
    assert header == read_metadata(saved)
    check_structure(network, Plan.from_json(header["plan"]))


def flip_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def swap_two_names(data):
    """Header edited so that two tensors of one shape change places; the tensor bytes are as they were."""
    a, b = b'"layer1.0.conv1.weight"', b'"layer1.0.conv2.weight"'
    assert a in data
    return data.replace(a, b"@" * 30).replace(b, a).replace(b"@" * 30, b)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "truncated"),
        (lambda data: data[:5], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: b"\x80\x04pickle" * 50, "truncated or no safetensors"),
        (flip_byte, "changed after it was written"),
        (swap_two_names, "changed after it was written"),
        (lambda data: data.replace(b"rank_rate", b"rank_rite"), "changed after it was written"),
        (lambda data: data.replace(b'"format":"jointsvd"', b'"format":"whatever"'), "not written by"),
        (lambda data: data.replace(b'"version":"1"', b'"version":"9"'), "version 9"),
    ],
)
def test_damaged_files_are_refused(saved, tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(saved.read_bytes()))
    assert path.read_bytes() != saved.read_bytes()
    with pytest.raises(ValueError, match=message):
        load_compressed(path, dense())


def test_foreign_files_and_other_architectures_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="no file"):
        load_compressed(tmp_path / "missing", dense())
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not written by"):
        load_compressed(tmp_path / "foreign", dense())
    for other in (
        build_model("resnet34", num_classes=10),
        build_model("resnet18", num_classes=7),
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(ValueError, match=r"another architecture|does not fit"):
            load_compressed(saved, other)


def test_what_could_not_be_loaded_is_not_written(tmp_path):
    path = tmp_path / "network.safetensors"
    plan = plan_compression(dense(), "ljsvd", rank_rate=0.05)
    network = build_structure(dense(), plan)
    for wrong in (Plan((Group(("layer1.0.conv1",), right_rank=2),)), plan_compression(dense(), "svd", rank_rate=0.05)):
        with pytest.raises(ValueError, match=r"of the plan|ranks"):
            save_compressed(path, network, wrong)
    network.load_state_dict({key: value.clone() for key, value in network.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match="came apart"):
        save_compressed(path, network, plan)
    assert not path.exists()
    save_compressed(path, dense(), Plan(), metadata={"plan": "mine", "sha256": "0"})
    assert load_compressed(path, dense())


def test_files_are_read_without_pickle(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("torch.load", refuse)
    load_compressed(saved, dense())
