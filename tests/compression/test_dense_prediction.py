"""Networks of torchvision that return more than logits of a class, from end to end: a segmenter and a detector."""

import pytest
import torch
import torchvision
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd import compress, num_parameters


def images(num, size):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def as_if_trained(model, run):
    """Batch norms of these images, in `model`."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        run(model)
    return model.eval()


@pytest.mark.slow
def test_a_segmenter():
    torch.manual_seed(0)
    build, given = torchvision.models.segmentation.fcn_resnet50, images(8, 64)
    model = build(weights=None, weights_backbone=None, aux_loss=True, num_classes=5)
    as_if_trained(model, lambda model: model(given))
    with pytest.raises(ValueError, match=r'y\["out"\] .*y\["aux"\] .*output=lambda y: y\["out"\]'):
        compress(model, [given], params=1.5)
    result = compress(model, [given], params=1.5, output=lambda y: y["out"], share=False, refit=False)
    assert num_parameters(model) >= 1.5 * num_parameters(result.model)
    assert {"aux_classifier.0", "aux_classifier.4"} <= {line["name"] for line in result.untouched}
    with torch.no_grad():
        found, expected = result.model(given), model(given)
    assert found.keys() == expected.keys()
    assert found["out"].shape == expected["out"].shape == (8, 5, 64, 64)
    assert 0.5 < result.held_out["kl"] / result.held_out["predicted_kl"] < 2  # nats an image, over its 4,096 positions
    assert result.held_out["top1_agreement"] > 60


def heads(model, batch):
    """What a detector says before boxes are chosen."""
    prepared, _ = model.transform(list(batch))
    return model.head(list(model.backbone(prepared.tensors).values()))


@pytest.mark.slow
def test_a_detector():
    torch.manual_seed(0)
    build, given = torchvision.models.detection.ssdlite320_mobilenet_v3_large, images(16, 320)
    model = as_if_trained(
        build(weights=None, weights_backbone=None, num_classes=5).train(), lambda model: heads(model, given)
    )

    def loss(y):
        return y["cls_logits"].logsumexp(2).sum() + y["bbox_regression"].square().sum()

    for task in ({"output": lambda y: y["cls_logits"].movedim(2, 1)}, {"loss": loss}):
        result = compress(model, [given[:8], given[8:]], params=1.2, forward=heads, share=False, **task)
        assert num_parameters(model) >= 1.2 * num_parameters(result.model)
        with torch.no_grad():
            before, after = model(list(given[:2])), result.model.eval()(list(given[:2]))
        for one, other in zip(before, after, strict=True):
            assert len(one["boxes"])
            overlaps = torchvision.ops.box_iou(one["boxes"][:20], other["boxes"]).max(1).values
            assert overlaps.mean() > 0.5
