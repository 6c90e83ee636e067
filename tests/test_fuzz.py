"""Files, plans and configurations at random: each is refused in one sentence, quickly, or means what it says.

A few of each in every run of the tests, thousands in the slow one; all follow from a seed.
"""

import json
import math
import random
import shutil
from collections import Counter
from dataclasses import fields

import pytest
import torch
from safetensors.torch import save
from torch import nn

from jointsvd import Group, Plan, TuckerGroup, build_structure, load_compressed, save_compressed
from jointsvd.compression.budget import Budget, Means
from jointsvd.experiment.choices import Model
from jointsvd.network import files
from jointsvd.network.files import read_metadata, read_tensors
from jointsvd.training.checkpoints import load_network
from jointsvd.training.models import build_model
from jointsvd.training.schedule import Schedule

ARCHITECTURE = {"name": "resnet20", "num_classes": 10, "in_channels": 1, "stem": "cifar", "source": "timm"}
ODD = [
    -1,
    0,
    1,
    7,
    1.5,
    10**6,
    10**12,
    10**30,
    math.nan,
    math.inf,
    True,
    None,
    "",
    "a",
    "0",
    "\0",
    "x" * 10_000,
    [],
    {},
]
ODD += [[1], ["0"], [[1]], {"a": 1}, "vit_giant_patch14_224", "torchvision", "python", "imagenet", "ab"]
DTYPES = [torch.float16, torch.int32, torch.complex64, torch.float8_e4m3fn, torch.bool, torch.int64]
DEEP = ["[" * 100_000, '{"a":' * 100_000]


def network():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4))


PLAN = Plan((Group(("0",), 0, 2), TuckerGroup(("2",), (3, 4)), Group(("4",), 0, 2)), {"method": "svd"})


def refused_or_the_same(path, load, expected, counts, measured):
    """Loading `path` is refused in a sentence, or gives the weights that were saved; neither costs much."""
    before, around, problem = path.read_bytes(), sorted(path.parent.iterdir()), None
    with measured() as cost:
        try:
            state = load(path).state_dict()
        except (ValueError, FileNotFoundError) as error:
            problem = str(error)
    assert cost["seconds"] <= 1, problem
    assert cost["megabytes"] <= 500, problem
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == around
    if problem is None:
        assert all(torch.equal(value.to(expected[key].dtype), expected[key]) for key, value in state.items())
    counts["loaded" if problem is None else "refused"] += 1


def damaged(data, draw):
    """Bytes of a file after what may happen to it."""
    place, length = draw.randrange(len(data)), draw.choice([1, 8, 200])
    if draw.random() < 0.3:
        place = draw.randrange(min(len(data), 3000))  # the header is small
    match draw.choice(["flip", "cut", "noise", "insert", "tail"]):
        case "flip":
            return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
        case "cut":
            return data[:place]
        case "noise":
            return data[:place] + draw.randbytes(length) + data[place + length :]
        case "insert":
            return data[:place] + draw.randbytes(length) + data[place:]
        case _:
            return data + draw.randbytes(length)


def odd(value, draw):
    """The value with one part, somewhere in it, replaced, removed or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {k: v for k, v in value.items() if k != key} | (
                {"new": draw.choice(ODD)} if draw.random() < 0.5 else {}
            )
        return value | {key: odd(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        index = draw.randrange(len(value))
        return [*value[:index], odd(value[index], draw), *value[index + 1 :]]
    return draw.choice(ODD)


def odd_json(text, draw):
    return draw.choice(DEEP) if draw.random() < 0.02 else json.dumps(odd(json.loads(text), draw))


def rewritten(path, draw, keys):
    """The file with something odd in it, under hashes that were computed again."""
    header, tensors = read_metadata(path), {key: value.clone() for key, value in read_tensors(path).items()}
    what, key = draw.choice([*keys, "tensor"]), draw.choice(list(tensors))
    if what != "tensor":
        header[what] = odd_json(header[what], draw)
    elif draw.random() < 0.5:
        tensors[key] = tensors[key].to(draw.choice([dtype for dtype in DTYPES if dtype != tensors[key].dtype]))
        if key.endswith("tracked") or tensors[key].dtype == torch.float16:  # another precision is another value
            tensors["new"] = tensors.pop(key)
    elif tensors[key].is_floating_point():
        tensors[key].view(-1)[draw.randrange(tensors[key].numel())] = draw.choice([math.nan, math.inf])
    else:
        tensors[key] = torch.zeros(3, dtype=torch.int64)
    header["sha256"] = files._digest(tensors, header["plan"])
    header[files.HEADER_SHA256] = files._header_digest(header)
    return save(tensors, header)


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_files(tmp_path, measured, number):
    draw, counts, dense = random.Random(number), Counter(), network()
    sources = {name: tmp_path / name for name in ("small.safetensors", "whole.safetensors", "mine.pt", "last.ckpt")}
    save_compressed(sources["small.safetensors"], build_structure(dense, PLAN), PLAN, metadata={"command": "train"})
    whole = build_model(**ARCHITECTURE)
    header = {"architecture": json.dumps(ARCHITECTURE), "plan": Plan().to_json()}
    save_compressed(sources["whole.safetensors"], whole, Plan(), metadata=header)
    torch.save(whole.state_dict(), sources["mine.pt"])
    torch.save({"state_dict": whole.state_dict(), "header": header, "epoch": 3}, sources["last.ckpt"])
    loads = {
        "small.safetensors": lambda path: load_compressed(path, dense),
        "whole.safetensors": load_network,
        "mine.pt": lambda path: load_network(path, ARCHITECTURE),
        "last.ckpt": load_network,
    }
    expected = {name: load(sources[name]).state_dict() for name, load in loads.items()}
    expected = {name: {key: value.clone() for key, value in state.items()} for name, state in expected.items()}
    (tmp_path / "tried").mkdir()
    for _ in range(number):
        name = draw.choice(["small.safetensors"] * 5 + list(loads))
        path, ours = tmp_path / "tried" / name, name.endswith("safetensors")
        keys = ["plan"] if name.startswith("small") else ["plan", "architecture", "architecture"]
        if ours and draw.random() < 0.5:
            path.write_bytes(rewritten(sources[name], draw, keys))
        elif name == "last.ckpt" and draw.random() < 0.5:
            changed = header | {key: odd_json(header[key], draw) for key in draw.sample(keys[:2], 1)}
            torch.save({"state_dict": whole.state_dict(), "header": changed}, path)
        else:
            path.write_bytes(damaged(sources[name].read_bytes(), draw))
        refused_or_the_same(path, loads[name], expected[name], counts, measured)
        path.unlink()
    print(f"{number} files: {dict(counts)}")
    assert counts["refused"] > 0.7 * number


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_plans(measured, number):
    draw, counts, dense = random.Random(number), Counter(), network()
    for _ in range(number):
        text, problem = odd_json(PLAN.to_json(), draw), None
        with measured() as cost:
            try:
                build_structure(dense, Plan.from_json(text))
            except ValueError as error:
                problem = str(error)
        assert cost["seconds"] <= 1, problem
        assert cost["megabytes"] <= 500, problem
        counts["built" if problem is None else "refused"] += 1
    print(f"{number} plans: {dict(counts)}")


SMALL = ["model=resnet20", "data.image_size=8", "recipe=smoke", "trainer.accelerator=cpu", "method.rank_rate=0.2"]
SMALL += ["recipe.baseline.num_images=64", "recipe.finetune.num_images=64"]
VALUES = "-1 0 1 2 0.5 1.5 nan inf -inf null true false abc '' [] [1] é [5,abc] [[1,0]] [[1,8]] {a:1} 1e12 1e-30 1e30"
VALUES += " 1000000000000 ../../x /proc/x ??? ${nothing} a/b python torchvision imagenet [0.5,2]"
VALUES = [*VALUES.split(), "9" * 30, "x" * 300]
GROUPS = ("method", "data", "recipe", "trainer", "model", "logger", "experiment")
OPTIONS = "seed baseline_seed calibration_images from_scratch name dense_name output_dir recipe.finetune"
OPTIONS += " data.image_size data._target_ +data.num_classes model._target_ method.name method.rank_rate"
OPTIONS += " method.hid method.layers +method.foo trainer.accelerator trainer.devices trainer.precision"
OPTIONS += " +trainer.num_nodes +trainer.strategy"
KEYS = [*GROUPS, *OPTIONS.split(), *(f"model.{option.name}" for option in fields(Model) if option.name != "arguments")]
KEYS += [f"recipe.{phase}.{option.name}" for phase in ("baseline", "finetune") for option in fields(Schedule)]
MORE = {"method=bijsvd": ["method.iterations", "method.left_share"], "method=nc_ctd": ["method.own_per_shared"]}
MORE["method=budget"] = [f"budget.{option.name}" for option in (*fields(Budget), *fields(Means))]


def overrides(draw):
    """Of one configuration, most often a wrong one."""
    method = draw.choice([*MORE, "method=svd", "method=svd"])
    small = [word for word in SMALL if not (method == "method=budget" and "rank_rate" in word)]
    small += ["calibration_images=32"] if method == "method=budget" else []
    key, value = draw.choice([*KEYS, *MORE.get(method, []) * 5]), draw.choice(VALUES)
    alone = key.endswith(("devices", "num_nodes"))  # two would start a second process, or wait for a node
    value = "0" if alone and value == "2" else value
    if alone or "{" in value or draw.random() < 0.9:
        return [method, *small, f"{key}={value}"]
    return ["-m", method, *small, f"{key}={value},{draw.choice(VALUES)}"]


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_configurations(command, measured, tmp_path, monkeypatch, number):
    """Those that are accepted run, and leave a row of numbers."""
    (tmp_path / "kept.txt").write_text("as it was")
    draw, counts = random.Random(number), Counter()
    command("train", *SMALL, "seed=abc")  # imports
    for index in range(number):
        folder = tmp_path / f"{index}" / "here"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        words, before = overrides(draw), everything(tmp_path)
        with measured() as cost:
            code, printed = command("train", *words)
        assert "Traceback" not in printed, (words, printed[-3000:])
        after = everything(tmp_path)
        assert {path: after[path] for path in before} == before, words
        assert all(path.is_relative_to(folder) for path in after.keys() - before.keys()), words
        rows = [json.loads(text) for path, text in after.items() if path.name == "row.json" and path not in before]
        assert all(math.isfinite(row["top1"]) for row in rows), words
        if code == 1 or str(code).startswith(("nothing was run", *(f"{group}=" for group in GROUPS))):
            assert cost["seconds"] <= 1, (words, code)
            assert cost["megabytes"] <= 500, (words, code)
            assert after.keys() == before.keys(), words
            counts["refused"] += 1
        else:
            known = ("diverged", "no plan ")  # at that learning rate; in the time that was measured
            assert rows or any(word in f"{code} {printed}" for word in known), (words, code)
            counts["ran" if code is None else "stopped"] += 1
        shutil.rmtree(folder)
    print(f"{number} configurations: {dict(counts)}")
    assert counts["refused"] > 0.5 * number
