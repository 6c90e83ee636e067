"""To compress a network and to run it takes PyTorch and three small packages."""

import subprocess
import sys

PROGRAM = """
import sys
import torch
before = set(sys.modules)
from jointsvd import compress, prepare_for_inference
model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10))
small = compress(model.eval(), [torch.randn(16, 3, 8, 8)], params=2).model
prepare_for_inference(small, torch.randn(1, 3, 8, 8), passes=1)
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
HEAVY = {"PIL", "hydra", "matplotlib", "omegaconf", "onnx", "onnxruntime", "onnxscript", "pandas", "pytorch_lightning"}
HEAVY |= {"rich", "scipy", "sklearn", "tabulate", "timm", "torchmetrics", "torchvision", "wandb"}


def test_what_is_imported():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    imported = set(result.stdout.split())
    assert "jointsvd" in imported
    assert not imported & HEAVY
