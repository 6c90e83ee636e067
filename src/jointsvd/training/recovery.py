"""What helps a compressed network back: learning from the dense one, and decay of products instead of factors."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointsvd.network.layers import FactorPair


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(wanted / T) || softmax(logits / T))``, mean over the images (Hinton et al., arXiv 1503.02531).

    logits, wanted: (N, classes); no gradient flows to `wanted`.
    """
    student, teacher = (F.log_softmax(x.float() / temperature, -1) for x in (logits, wanted.detach()))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def squared_products(network: nn.Module) -> Tensor:
    """Sum of ``||U V||^2`` over the network's factor pairs: half of it is the weight decay of what they stand for
    (Frobenius decay: Khodak et al., arXiv 2105.01029)."""
    total = torch.zeros((), device=next(network.parameters()).device)
    with torch.autocast(total.device.type, enabled=False):
        for module in network.modules():
            if isinstance(module, FactorPair):
                U, V = module.u.weight.flatten(1), module.v.weight.transpose(0, 1).flatten(1)  # a row a rank
                total = total + ((U @ U.T) * (V @ V.T)).sum()
    return total


def factors_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights of all factor pairs, a shared one once."""
    pairs = [module for module in network.modules() if isinstance(module, FactorPair)]
    return list(dict.fromkeys(cast(nn.Parameter, part.weight) for pair in pairs for part in (pair.u, pair.v)))
