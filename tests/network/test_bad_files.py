"""Files that were changed, or that say what is not so, are refused before they cost time or memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from jointsvd import Group, Plan, TuckerGroup, build_structure, load_compressed, save_compressed
from jointsvd.network import files
from jointsvd.network.files import check_file, read_metadata, read_tensors


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip


PLAN = Plan((Group(("0",), right_rank=4), Group(("2",), right_rank=5)), {"method": "svd"})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "network.safetensors"
    facts = {"facts": '{"accuracy": {"top1": 90.5}}', "command": "train", "architecture": '{"name": "mine"}'}
    save_compressed(path, build_structure(network(), PLAN), PLAN, metadata=facts)
    return path


def rewritten(path, *, tensors=None, plan=None):
    """The file with other contents under hashes of theirs, as who means it would write it."""
    header, found = read_metadata(path), tensors or read_tensors(path)
    header["plan"] = plan or header["plan"]
    header["sha256"] = files._digest(found, header["plan"])
    header[files.HEADER_SHA256] = files._header_digest(header)
    path.write_bytes(save(found, header))
    return path


def plan_of(**group):
    plan = json.loads(PLAN.to_json())
    plan["groups"][0].update(group)
    return json.dumps(plan)


@pytest.mark.parametrize("rank", [28, 1_000_000, 10**30])
@pytest.mark.parametrize("group", ["matrix", "tucker"])
def test_ranks_are_compared_before_they_take_memory(saved, refused, rank, group):
    ranks = {"right_rank": rank}
    if group == "tucker":
        plan = json.loads(Plan((TuckerGroup(("0",), (3, 4)),)).to_json())
        plan["groups"][0]["own"] = [3, rank]
        path = rewritten(saved, plan=json.dumps(plan))
    else:
        path = rewritten(saved, plan=plan_of(**ranks))
    with refused("does not fit this network.*must be between 1 and"):
        load_compressed(path, network())


def test_full_rank_is_not_above_full_rank():
    joint = Plan((Group(("a", "b"), left_rank=9, right_rank=18),))
    layers = nn.ModuleDict({name: nn.Conv2d(3, 16, 3) for name in "ab"})
    assert build_structure(layers, joint)["a"].ranks == (9, 18)
    with pytest.raises(ValueError, match="right_rank must be between 1 and 18"):
        build_structure(layers, Plan((Group(("a", "b"), right_rank=19),)))
    each = Plan((TuckerGroup(("0", "2"), (3, 16)),))
    assert build_structure(network(), each)[2].ranks == (3, 16)
    with pytest.raises(ValueError, match=r"between 1 and \(3, 16\), got \(4, 16\)"):
        build_structure(network(), Plan((TuckerGroup(("2", "0"), (4, 16)),)))


def test_shapes_are_compared_before_weights_are_read(saved, refused, monkeypatch):
    with torch.device("meta"):
        large = nn.Sequential(*network()[:4], nn.Linear(16, 10**9))
    monkeypatch.setattr(files, "_tensors", None)
    for check in (check_file, load_compressed):
        with refused(r"another architecture: 4.weight has shape \(4, 16\), this network needs \(1000000000, 16\)"):
            check(saved, large)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_numbers_of_another_kind_are_refused(saved, dtype):
    tensors = read_tensors(saved)
    tensors["4.weight"] = tensors["4.weight"].to(dtype)
    with pytest.raises(ValueError, match=r"holds torch\.\w+ in 4\.weight, where the network has torch\.float32"):
        load_compressed(rewritten(saved, tensors=tensors), network())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_said(saved, caplog, dtype):
    found = load(saved.read_bytes())
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in found.items()}
    assert load_compressed(rewritten(saved, tensors=tensors), network())[4].weight.dtype == dtype
    assert f"holds weights in {dtype}" in caplog.text


@pytest.mark.parametrize("key", ["4.weight", "1.running_var"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(saved, key, value):
    tensors = read_tensors(saved)
    tensors[key].view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"NaN or infinite values in {key}"):
        load_compressed(rewritten(saved, tensors=tensors), network())


class Masked(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("mask", torch.full((2,), -torch.inf))


def test_a_mask_may_be_infinite(tmp_path):
    save_compressed(tmp_path / "masked", Masked(), Plan())
    assert load_compressed(tmp_path / "masked", Masked()).mask.isinf().all()


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"90.5", b"99.5"), (b"train", b"brain"), (b'\\"mine\\"', b'\\"mime\\"'), (b'"command"', b'"commend"')],
)
def test_the_hashes_cover_the_whole_header(saved, old, new):
    data = saved.read_bytes()
    assert data.count(old) == 1
    saved.write_bytes(data.replace(old, new))
    for read in (read_metadata, lambda path: load_compressed(path, network())):
        with pytest.raises(ValueError, match="changed after it was written: its header is not that of"):
            read(saved)


def test_files_written_before_are_read(saved):
    header = read_metadata(saved)
    tensors = {key: value.clone() for key, value in read_tensors(saved).items()}  # not those of the file itself
    del header[files.HEADER_SHA256]
    saved.write_bytes(save(tensors, header))
    assert read_metadata(saved) == header
    assert torch.equal(load_compressed(saved, network())[4].weight, tensors["4.weight"])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"kind": "jointsvd-plan", "version": 1, "groups": ' + '{"a":' * 50_000,
        plan_of(members="ab"),
        plan_of(members=None),
        plan_of(members=[["0"]]),
        plan_of(right_rank=True),
        plan_of(right_rank="4"),
        plan_of(right_rank=[4]),
        plan_of(color="red"),
        json.dumps(json.loads(PLAN.to_json()) | {"settings": True}),
        json.dumps(json.loads(PLAN.to_json()) | {"settings": "ab"}),
        json.dumps(json.loads(PLAN.to_json()) | {"version": True}),
        json.dumps(json.loads(PLAN.to_json()) | {"groups": "ab"}),
        json.dumps(json.loads(PLAN.to_json()) | {"groups": {"a": 1}}),
        json.dumps(json.loads(PLAN.to_json()) | {"groups": [1]}),
        "9" * 5000,
        "null",
    ],
)
def test_what_is_no_plan(text, refused):
    with refused("not a jointsvd-plan of version 1"):
        Plan.from_json(text)


def test_a_plan_of_very_many_members_is_read_quickly(refused):
    text = plan_of(members=[f"m{number}" for number in range(100_000)])
    plan = Plan.from_json(text)
    with refused("the network has nothing"):
        build_structure(network(), plan)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/dev/null", "/", ""])
def test_paths_that_are_no_files(path):
    assert not files.is_compressed_file(path)
    for read in (read_metadata, read_tensors, lambda path: load_compressed(path, network())):
        with pytest.raises(ValueError, match=r"no file at|cannot be read"):
            read(path)
    with pytest.raises(ValueError, match=r"no file at|cannot be read"):
        read_metadata(Path(path))
