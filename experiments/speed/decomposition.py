"""Time the decomposition of all of ResNet-34 (random weights), and of one stage beside the plain way.

python experiments/speed/decomposition.py [--rank-rate 0.04] [--stage layer3]
The plain way is a full SVD of every stack; for Bi-JSVD that takes minutes even for one stage.
Prints seconds, their ratio, and the worst excess of a group's squared error over the plain way's.
"""

import argparse
import sys
import time

import torch
from tqdm import tqdm

from jointsvd import bijsvd, ljsvd, plan_compression, rjsvd
from jointsvd.decomposition.svd import NUM_ITERATIONS
from jointsvd.network.layers import unfold
from jointsvd.results.rows import heading
from jointsvd.training.models import build_model

METHODS = ("svd", "rjsvd1", "rjsvd2", "ljsvd", "bijsvd")


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
    parser.add_argument("--stage", default="layer3", help="where to compare with the plain way; '' for everywhere")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build_model("resnet34", num_classes=10)
    modules = dict(model.named_modules())
    print(heading(f"python {' '.join(sys.argv)}", seed=0))
    print(f"ResNet-34, random weights, rank_rate {arguments.rank_rate}")
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))  # loads the libraries
    for method in METHODS:
        plan = plan_compression(model, method, rank_rate=arguments.rank_rate)
        groups = {
            group.members[0]: (
                [unfold(modules[name].weight.detach()) for name in group.members],
                group.left_rank,
                group.right_rank,
            )
            for group in plan.groups
        }
        whole, _ = timed(fast, groups.values())
        compared = [group for name, group in groups.items() if name.startswith(arguments.stage)]
        seconds, errors = timed(fast, compared)
        plain_seconds, plain_errors = timed(plain, compared)
        excess = max(ours / theirs for ours, theirs in zip(errors, plain_errors, strict=True)) - 1
        print(
            f"{method:7s} network {whole:6.2f} s   {arguments.stage} {seconds:6.2f} s, plainly {plain_seconds:7.2f} s, "
            f"{plain_seconds / seconds:6.1f} times faster, squared error {excess:+.4%} at worst",
            flush=True,
        )


if __name__ == "__main__":
    main()
