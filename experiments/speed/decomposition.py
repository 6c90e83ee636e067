"""Time the decomposition of all of ResNet-34 (random weights) beside the plain way: full SVDs of every stack.

python experiments/speed/decomposition.py [--rank-rate 0.04] [--no-plain]
Prints seconds, the ratio, and the worst excess of a group's squared error over the plain way's.
"""

import argparse
import time

import torch
from tqdm import tqdm

from jointsvd import bijsvd, ljsvd, plan_compression, rjsvd
from jointsvd.decompose import NUM_ITERATIONS
from jointsvd.layers import unfold
from jointsvd.models import build_model
from jointsvd.results import processor_name


def fast(Ws, left_rank, right_rank):
    """Approximations of the members of a group, by jointsvd."""
    if left_rank and right_rank:
        Us, V, U, Vs = bijsvd(Ws, left_rank, right_rank)
        return [(U_n @ V + U @ V_n) for U_n, V_n in zip(Us, Vs, strict=True)]
    if left_rank:
        U, Vs = ljsvd(Ws, left_rank)
        return [U @ V_n for V_n in Vs]
    Us, V = rjsvd(Ws, right_rank)
    return [U_n @ V for U_n in Us]


def plain(Ws, left_rank, right_rank):
    """The same by Algorithm 3 as printed: an SVD of the residuals' stack for each step."""
    Ws = [W.double() for W in Ws]
    right_parts = left_parts = [torch.zeros_like(W) for W in Ws]
    for _ in range(NUM_ITERATIONS if left_rank and right_rank else 1):
        if right_rank:
            residuals = [W - left for W, left in zip(Ws, left_parts, strict=True)]
            V = torch.linalg.svd(torch.cat(residuals), full_matrices=False).Vh[:right_rank]
            right_parts = [R @ V.T @ V for R in residuals]
        if left_rank:
            residuals = [W - right for W, right in zip(Ws, right_parts, strict=True)]
            U = torch.linalg.svd(torch.cat(residuals, 1), full_matrices=False).U[:, :left_rank]
            left_parts = [U @ (U.T @ R) for R in residuals]
    return [right + left for right, left in zip(right_parts, left_parts, strict=True)]


def timed(function, groups):
    start = time.perf_counter()
    approximations = [function(*group) for group in tqdm(groups, desc=function.__name__, leave=False)]
    seconds = time.perf_counter() - start
    errors = [
        sum((W.double() - A.double()).square().sum().item() for W, A in zip(Ws, As, strict=True))
        for (Ws, _, _), As in zip(groups, approximations, strict=True)
    ]
    return seconds, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank-rate", type=float, default=0.04)
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain way, which takes minutes")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build_model("resnet34", num_classes=10)
    print(f"ResNet-34, rank_rate {arguments.rank_rate}, {processor_name(torch.device('cpu'))}")
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))  # loads the libraries
    for method in ("svd", "rjsvd1", "rjsvd2", "ljsvd", "bijsvd"):
        plan = plan_compression(model, method, rank_rate=arguments.rank_rate)
        modules = dict(model.named_modules())
        groups = [
            ([unfold(modules[name].weight.detach()) for name in group.members], group.left_rank, group.right_rank)
            for group in plan.groups
        ]
        seconds, errors = timed(fast, groups)
        line = f"{method:8s} {seconds:7.2f} s"
        if not arguments.no_plain:
            plain_seconds, plain_errors = timed(plain, groups)
            worst = max(ours / theirs for ours, theirs in zip(errors, plain_errors, strict=True)) - 1
            ratio = plain_seconds / seconds
            line += f"   plain {plain_seconds:8.2f} s   {ratio:6.1f} times faster   squared error {worst:+.4%} at worst"
        print(line, flush=True)


if __name__ == "__main__":
    main()
