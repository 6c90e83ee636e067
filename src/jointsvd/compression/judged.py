"""What a compressed network turned out to be: beside the dense one on images held out, and in time; both are logged."""

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from jointsvd.compression.agreement import Part, agreement
from jointsvd.compression.budget import Engine
from jointsvd.compression.calibration import Loader
from jointsvd.compression.layer_times import paired_times
from jointsvd.compression.sources import HELD_OUT, ROUND
from jointsvd.compression.task import Task
from jointsvd.network.plan import Plan

_log = logging.getLogger(__name__)


def judged(model: nn.Module, compressed: nn.Module, plan: Plan, whole: Loader, task: Task) -> dict[str, Any] | None:
    """`Compressed.held_out`: a warning if KL is more than twice what was predicted."""
    images = list(Part(whole, ROUND, [HELD_OUT], task))
    if not images:
        return None
    predicted, found = plan.settings["predicted_kl"] or 0.0, agreement(model, compressed, images, task)
    same = found.top1_agreement
    alike = "" if same is None else f" the prediction is the dense network's in {same:.1f} %;"
    say = _log.warning if found.kl > 2 * predicted + 1e-6 else _log.info
    text = "on %d held-out images%s KL %.3g nats, predicted %.3g"
    say(text, found.images, alike, found.kl, predicted)
    return found.as_dict(predicted)


def timed(dense: nn.Module, compressed: nn.Module, image: Tensor, plan: Plan, engine: Engine | None) -> Plan:
    """The plan with milliseconds for one image, and how many times faster than the dense network, measured in turn."""
    was, promised = plan.settings["milliseconds"], plan.settings["predicted_milliseconds"]
    before, found = paired_times(dense, compressed, image, engine)
    say = _log.info if before / found > was / promised / 1.15 else _log.warning
    text = "%.3g ms dense, %.3g ms predicted (%.3g times faster), %.3g ms measured (%.3g times faster than just now)"
    say(text, was, promised, was / promised, found, before / found)
    measured = {"engine": engine or "torch", "measured_milliseconds": found, "measured_faster": before / found}
    return replace(plan, settings={**plan.settings, **measured})
