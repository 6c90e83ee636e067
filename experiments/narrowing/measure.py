"""compress with channels that may go (narrow=True) beside compress without, at the same speed asked for.

python experiments/narrowing/measure.py DENSE [faster=8]

DENSE: a dense network for Fashion-MNIST in a file by jointsvd, from outputs/dense. Speed is that of ONNX Runtime, one
image, one thread, with ranks in multiples of 16. KL and agreement are with the dense network's predictions on some test
images, accuracy is on all. Writes rows.csv and table.md beside this file, a row when it is finished; rows that
are there are not made again. What no plan reaches is said, and has no row.
"""

import sys
import time
from pathlib import Path

import pandas as pd
import torch

from jointsvd import compress, num_flops, num_parameters
from jointsvd.compression.agreement import agreement
from jointsvd.network.atomic import write_atomic
from jointsvd.results.rendered import write_table
from jointsvd.results.rows import environment
from jointsvd.results.words import spelled
from jointsvd.training.checkpoints import load_network
from jointsvd.training.classifier import top1
from jointsvd.training.datasets import FashionMNIST

FOLDER = Path(__file__).parent
NUM_IMAGES = 512
SEED = 0  # draws the calibration images
NUM_COMPARED = 2000  # test images
FASTER = (4, 7, 10)
KEY = ["network", "faster", "narrow"]


def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    path, *only = sys.argv[1:]
    dense = load_network(path).eval()
    data = FashionMNIST(28, None, "data")
    data.setup("fit")
    data.setup("validate")
    images = list(data.calibration_batches(NUM_IMAGES, seed=SEED))
    facts = {"network": Path(path).parent.name, "command": f"python {' '.join(sys.argv)}", "data": "fashion_mnist"}
    facts |= {"num_images": NUM_IMAGES, "seed": SEED} | environment(torch.device("cpu"))
    facts["dense_top1"] = accuracy(dense, data)
    for faster in [float(word.removeprefix("faster=")) for word in only] or FASTER:
        for narrow in (False, True):
            key = {"network": facts["network"], "faster": faster, "narrow": narrow}
            if not (known().reindex(columns=KEY) == pd.Series(key)).all(axis=1).any():
                try:
                    row = pd.DataFrame([key | made(dense, images, data, faster, narrow) | facts])
                except ValueError as error:
                    print(f"{faster:g} times faster: {error}")
                    continue
                write_atomic(FOLDER / "rows.csv", pd.concat([known(), row], ignore_index=True).to_csv(index=False))
    write_table(FOLDER / "table.md", readable(known()))


def made(dense, images, data, faster, narrow):
    start = time.perf_counter()
    result = compress(dense, images, faster=faster, engine="onnx", rank_multiple=16, narrow=narrow)
    seconds, network = time.perf_counter() - start, result.model.eval()
    test = torch.cat([data.normalize(batch) for batch, _ in data.val_dataloader()])[:NUM_COMPARED]
    found, size = agreement(dense, network, test.split(100)), data.input_size
    return {
        "measured_faster": result.plan.settings["measured_faster"],
        "narrowed": len(result.plan.narrowed),
        "params": num_parameters(dense) / num_parameters(network),
        "flops": num_flops(dense, size) / num_flops(network, size),
        "predicted_kl": result.held_out["predicted_kl"],
        "kl": found.kl,
        "agreement": found.top1_agreement,
        "top1": accuracy(network, data),
        "seconds": round(seconds),
    }


@torch.inference_mode()
def accuracy(network, data):
    return top1(network, data)


def readable(rows):
    lines = [
        {
            "network": spelled(row["network"].split("-")[0]),
            "asked for, times faster": f"{row['faster']:g}",
            "channels": f"{row['narrowed']:.0f} blocks narrowed" if row["narrow"] else "all",
            "measured, times faster": f"{row['measured_faster']:.2f}",
            "times fewer FLOPs": f"{row['flops']:.1f}",
            "times fewer parameters": f"{row['params']:.1f}",
            "KL, nats": f"{row['kl']:.4f}",
            "predicted": f"{row['predicted_kl']:.4f}",
            "agreement, %": f"{row['agreement']:.2f}",
            "accuracy, %": f"{row['top1']:.2f}",
            "seconds": f"{row['seconds']:.0f}",
        }
        for row in rows.sort_values(KEY).to_dict("records")
    ]
    return pd.DataFrame(lines)


def known():
    path = FOLDER / "rows.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)


if __name__ == "__main__":
    main()
