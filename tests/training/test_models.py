"""Dense networks: stems, sources, and pretrained weights from files that the tests put where downloads are kept."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from jointsvd import find_groups, num_parameters
from jointsvd.training.models import WITH_CIFAR_STEM, build_model, init_truncated_normal


@pytest.mark.parametrize("source", ["timm", "torchvision"])
@pytest.mark.parametrize(
    "name", [name for name in WITH_CIFAR_STEM if name not in ("resnet20", "resnet56", "resnet110")]
)
def test_networks_take_small_and_large_images(name, source):
    with torch.device("meta"):
        small = build_model(name, num_classes=7, in_channels=1, source=source).eval()
        large = build_model(name, num_classes=7, in_channels=2, stem="imagenet", source=source).eval()
        assert small(torch.empty(2, 1, 32, 32)).shape == (2, 7)
        assert large(torch.empty(2, 2, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize(("layers", "blocks", "millions"), [(20, 3, 0.27), (56, 9, 0.86), (110, 18, 1.73)])
def test_he_et_als_networks_for_cifar(layers, blocks, millions):
    name = f"resnet{layers}"
    network = build_model(name, num_classes=10).eval()
    assert num_parameters(network) / 1e6 == pytest.approx(millions, abs=0.005)  # 0.85 and 1.7 M without 1x1 shortcuts
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    sizes = {members[0]: len(members) for members in find_groups(network, hid="joint", layers=["layer?.*.conv?"])}
    assert set(sizes.values()) == {blocks}
    assert len(sizes) == 6
    assert len(find_groups(network, hid="joint")) == 4
    with pytest.raises(ValueError, match="source=timm"):
        build_model(name, num_classes=10, source="torchvision")


@pytest.mark.parametrize(("source", "name"), [("timm", "mobilenetv3_small_100"), ("torchvision", "squeezenet1_1")])
def test_any_network_of_a_source(source, name):
    network = build_model(name, num_classes=7, in_channels=1, stem="imagenet", source=source).eval()
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 7)


def test_a_function_of_the_users():
    arguments = {"in_features": 3, "out_features": 2}
    network = build_model("torch.nn.Linear", num_classes=2, source="python", arguments=arguments)
    assert network.weight.shape == (2, 3)


def test_the_cifar_stem_keeps_the_resolution():
    network = build_model("resnet18", num_classes=10)
    assert network.conv1.stride == (1, 1)
    assert network.maxpool(network.conv1(torch.zeros(1, 3, 32, 32))).shape[-2:] == (32, 32)


def test_truncated_normal_start():
    network = build_model("resnet18", num_classes=10)
    init_truncated_normal(network, 0.01)
    weights = network.layer4[1].conv2.weight
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert weights.mean().abs() < 1e-4


@pytest.fixture
def torchvision_weights(tmp_path, monkeypatch):
    """A checkpoint under the name and in the folder of torchvision's download."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = torchvision.models.resnet18().state_dict()
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    return state


@pytest.fixture
def timm_weights(tmp_path, monkeypatch):
    """A checkpoint in the layout of the Hugging Face cache, where timm looks before it downloads."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = timm.get_pretrained_cfg("resnet18").hf_hub_id.rstrip("/") or "timm/resnet18.a1_in1k"
    repository = repository if "." in repository else f"{repository}/resnet18.a1_in1k"
    folder = tmp_path / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    state = timm.create_model("resnet18").state_dict()
    save_file(state, snapshot / "model.safetensors")
    return state


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_pretrained_weights(source, request):
    state = request.getfixturevalue(f"{source}_weights")
    network = build_model("resnet18", num_classes=1000, stem="imagenet", source=source, pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    fewer = build_model("resnet18", num_classes=5, stem="imagenet", source=source, pretrained=True)
    assert fewer.fc.out_features == 5
    assert torch.equal(fewer.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_weights_that_cannot_be_had_say_what_to_do(source, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no internet")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ValueError, match=r"model\.checkpoint"):
        build_model("resnet18", num_classes=1000, stem="imagenet", source=source, pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet21"}, "unknown model 'resnet21' of timm; did you mean resnet"),
        ({"name": "mobilenetv3_small_100"}, "no CIFAR stem: set stem=imagenet"),
        ({"name": "resnet18", "stem": "imagenet", "source": "torchvision", "pretrained": "V9"}, "could not get"),
        ({"name": "no.such.function", "source": "python"}, "cannot import"),
        ({"name": "math.pi", "source": "python"}, "not a function"),
        ({"name": "math.sqrt", "source": "python", "arguments": {"x": 1}}, "cannot be called"),
        ({"name": "builtins.dict", "source": "python"}, "not a network"),
        ({"name": "resnet18", "stem": "mnist"}, "stem is"),
        ({"name": "resnet18", "pretrained": True}, "set stem=imagenet"),
        ({"name": "resnet18", "stem": "imagenet", "pretrained": True, "in_channels": 1}, "3-channel"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(num_classes=10, **arguments)
