"""How long `compress` takes, and how much memory, each case in a process of its own.

python experiments/speed/compress.py [--case vgg16_bn] [--images 512] [--memory 4]
Networks of torchvision with random weights at 224 pixels, ResNet-34 at 28 pixels; images are noise of few frequencies,
in batches of 32. Batch norms are measured on the images first, so that activations are of a trained network's size.
Peak memory is that of the process, with PyTorch, the network and the images in it. Seconds of processors say more than
those of the clock where others use them too.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import nn

from jointsvd import compress, recalibrate_batchnorm
from jointsvd.results.rows import heading
from jointsvd.training.models import build_model

CASES = {"vgg16_bn": 4, "resnet50": 4, "resnet34": 22.1, "resnet18": 4, "resnet18_frozen": 4}  # times fewer parameters
SIZES = {"resnet34": (1, 28, 28)}  # others: 3, 224, 224


def network(case, batches):
    if case == "resnet34":
        model = build_model(case, num_classes=10, in_channels=1)
    else:
        import torchvision

        model = getattr(torchvision.models, case.removesuffix("_frozen"))(weights=None)
    recalibrate_batchnorm(model, batches[:2])
    return frozen(model).eval() if case.endswith("_frozen") else model.eval()


def frozen(model):
    """With norms that are no batch norms."""
    from torchvision.ops import FrozenBatchNorm2d

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = FrozenBatchNorm2d(module.num_features)
            norm.load_state_dict({key: value for key, value in module.state_dict().items() if key in norm.state_dict()})
            model.set_submodule(name, norm)
    return model


def images(num, size):
    low = torch.randn(num, size[0], 14, 14)
    return list(nn.functional.interpolate(low, size=size[1:], mode="bicubic").split(32))


def run(case, num, memory):
    torch.manual_seed(0)
    batches = images(num, SIZES.get(case, (3, 224, 224)))
    model = network(case, batches)
    start, busy = time.perf_counter(), time.process_time()
    result = compress(model, batches, params=CASES[case], memory=memory)
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{case:16} {num} images, {torch.get_num_threads()} threads: {seconds:.0f} s, of which processors worked "
        f"{time.process_time() - busy:.0f} s, peak {used.ru_maxrss / 2**20:.1f} GB; "
        f"{len(result.plan.groups)} groups, KL {result.held_out['kl']:.3g} on held-out images"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, help="in this process; without it all, each in its own")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--memory", type=float, help="GB for images on their way (half of what is free)")
    given = parser.parse_args()
    if given.case:
        run(given.case, given.images, given.memory)
        return
    print(heading("python experiments/speed/compress.py", 0), flush=True)
    more = [f"--images={given.images}", *([f"--memory={given.memory}"] if given.memory else [])]
    for case in CASES:
        subprocess.run([sys.executable, __file__, "--case", case, *more], check=True)


if __name__ == "__main__":
    main()
