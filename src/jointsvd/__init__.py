"""Joint matrix decomposition of CNNs: layers of the same shape share one SVD factor (Chen et al., arXiv 2107.04386)."""

from jointsvd.compression.allocation import plan_for_budget
from jointsvd.compression.budget import Budget
from jointsvd.compression.calibration import recalibrate_batchnorm
from jointsvd.compression.compressed import Compressed, compress
from jointsvd.compression.layer_times import LayerTimes, measure_layer_times
from jointsvd.compression.refitting import match_norms, refit
from jointsvd.compression.statistics import Statistics, collect_statistics
from jointsvd.decomposition.svd import bijsvd, ljsvd, rjsvd, truncated_svd
from jointsvd.decomposition.tucker import coupled_tucker2, tucker2
from jointsvd.deployment.inference import Prepared, prepare_for_inference
from jointsvd.network.cost import compression_factor, num_flops, num_parameters
from jointsvd.network.files import load_compressed, load_with_header, save_compressed
from jointsvd.network.groups import find_groups
from jointsvd.network.plan import Group, Plan, TuckerGroup
from jointsvd.network.rules import plan_compression
from jointsvd.network.shared import check_sharing
from jointsvd.network.surgery import apply_plan, build_structure, compress_model
from jointsvd.network.tensors import unique_tensors

__version__ = "0.2.0"
__all__ = [
    "Budget",
    "Compressed",
    "Group",
    "LayerTimes",
    "Plan",
    "Prepared",
    "Statistics",
    "TuckerGroup",
    "apply_plan",
    "bijsvd",
    "build_structure",
    "check_sharing",
    "collect_statistics",
    "compress",
    "compress_model",
    "compression_factor",
    "coupled_tucker2",
    "find_groups",
    "ljsvd",
    "load_compressed",
    "load_with_header",
    "match_norms",
    "measure_layer_times",
    "num_flops",
    "num_parameters",
    "plan_compression",
    "plan_for_budget",
    "prepare_for_inference",
    "recalibrate_batchnorm",
    "refit",
    "rjsvd",
    "save_compressed",
    "truncated_svd",
    "tucker2",
    "unique_tensors",
]
