"""Checkpoints that were damaged, or that say what is not so."""

import io
import json
import random
import zipfile

import pytest
import torch
from torch import nn

from jointsvd import Plan, save_compressed
from jointsvd.training.checkpoints import load_network, load_weights, read_checkpoint
from jointsvd.training.models import build_model

RESNET = {"name": "resnet20", "num_classes": 10, "in_channels": 1}


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def contents(path):
    buffer = io.BytesIO()
    torch.save(network().state_dict(), buffer)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_no_flipped_bit_changes_a_weight(tmp_path):
    path, draw = tmp_path / "mine.pt", random.Random(0)
    data = contents(path)
    expected = read_checkpoint(path)
    refused = 0
    for _ in range(300):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
        loaded = network()
        try:
            load_weights(loaded, path)
        except ValueError:
            refused += 1
            continue
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())  # in the padding
    assert refused > 50
    path.write_bytes(data)
    middle = data.index(expected["3.weight"].numpy().tobytes()) + 5
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :])
    with pytest.raises(ValueError, match="is not of its checksum"):
        load_weights(network(), path)


def test_a_file_that_unpacks_to_more_than_it_is(tmp_path, refused):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * 300_000_000)
    with refused("larger than the file", seconds=1):
        load_weights(network(), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {1: state["3.weight"], **state}, "no state dict of tensors"),
        (lambda state: dict(enumerate(state.values())), "no state dict of tensors"),
        (lambda state: [state], "holds a list"),
        (lambda state: {}, "no state dict"),
        (lambda state: state | {"3.weight": state["3.weight"].to(torch.int32)}, r"holds torch\.int32 in 3\.weight"),
        (lambda state: state | {"3.weight": state["3.weight"].to(torch.complex64)}, r"holds torch\.complex64"),
        (lambda state: state | {"3.weight": state["3.weight"].to_sparse()}, "no dense tensor in 3.weight"),
        (lambda state: state | {"3.weight": torch.zeros(1).expand(10**6, 10**6)}, "another network"),
    ],
)
def test_what_is_no_state_dict_of_this_network(tmp_path, refused, change, message):
    torch.save(change(network().state_dict()), tmp_path / "mine.pt")
    with refused(message):
        load_weights(network(), tmp_path / "mine.pt")


def test_a_state_dict_in_half_precision_is_said(tmp_path, caplog):
    torch.save(network().half().state_dict(), tmp_path / "half.pt")
    model = network()
    load_weights(model, tmp_path / "half.pt")
    assert model[0].weight.dtype == torch.float32
    assert "holds weights in torch.float16" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        *({"num_classes": value} for value in (10**6, 10**7, 10**30, "10", True, 1.5, None, -1, 0, [10])),
        *({"in_channels": value} for value in (10**6, "3")),
        *({"name": value} for value in ("vit_giant_patch14_224", "vgg16", 5, ["resnet20"])),
        *({"stem": 1}, {"source": None}, {"source": {}}, {"arguments": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_an_architecture_is_compared_before_it_is_built(tmp_path, refused, change, kind):
    build_model("resnet18", num_classes=2, stem="imagenet")  # timm's list of names is made once
    path, architecture = tmp_path / f"network.{kind}", json.dumps(RESNET | {"stem": "cifar"} | change)
    if change.get("name") in ("vit_giant_patch14_224", "vgg16"):
        architecture = architecture.replace('"cifar"', '"imagenet"')
    model = build_model(**RESNET)
    if kind == "safetensors":
        save_compressed(path, model, Plan(), metadata={"architecture": architecture})
    else:
        header = {"architecture": architecture, "plan": Plan().to_json()}
        torch.save({"state_dict": model.state_dict(), "header": header}, path)
    with refused():
        load_network(path)


def test_a_damaged_file_of_ours_is_no_checkpoint_either(tmp_path):
    path = tmp_path / "dense.safetensors"
    save_compressed(path, network(), Plan())
    load_weights(network(), path)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(ValueError, match="changed after it was written"):
        load_weights(network(), path)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_no_random_number_is_missing_after_loading(tmp_path, kind):
    model, path = build_model(**RESNET), tmp_path / f"network.{kind}"
    if kind == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_compressed(path, model, Plan(), metadata={"architecture": json.dumps(RESNET)})
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_network(path, RESNET)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/", "nowhere.pt"])
def test_paths_that_are_no_files(path):
    with pytest.raises(ValueError, match=r"no checkpoint at|no readable checkpoint"):
        load_network(path, RESNET)
