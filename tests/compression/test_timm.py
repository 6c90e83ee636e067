"""All CNN families of timm, a network each, small: at full rank they are dense; budgets are met; they are saved, loaded
and exported."""

import copy

import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from jointsvd import Group, Plan, apply_plan, compress, load_compressed, num_parameters, save_compressed
from jointsvd.compression.untouched import matrix_layers
from jointsvd.deployment.export import to_onnx
from jointsvd.network.cost import usage
from jointsvd.network.layers import unfolded_shape

pytestmark = pytest.mark.slow

NETWORKS = """
    bat_resnext26ts botnet26t_256 convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_s cspresnet50 densenet121
    dla34 dpn48b ecaresnet26t edgenext_xx_small efficientnet_lite0 efficientnetv2_rw_t efficientvit_b0 fasternet_t0
    ese_vovnet19b_slim fastvit_t8 fbnetc_100 gernet_s ghostnet_050 ghostnetv2_100 halonet26t hardcorenas_a hgnetv2_b0
    hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_050
    legacy_seresnet18 legacy_xception levit_128s mambaout_femto mixnet_s mnasnet_050 mobilenetv2_050
    mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs nf_regnet_b0 nfnet_f0 poolformer_s12
    rdnet_tiny regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d
    resnet18 resnetv2_50 rexnet_100 selecsls42b shvit_s1 skresnet18 starnet_s1 swiftformer_xs tinynet_e tresnet_m
    vgg11_bn visformer_tiny xception41
"""
SIZES = {
    "botnet26t_256": 256,
    "halonet26t": 256,
    "lambda_resnet26t": 128,
    "bat_resnext26ts": 256,
    "inception_v3": 96,
    "inception_v4": 96,
}
SIZES |= {"inception_resnet_v2": 96, "levit_128s": 224, "visformer_tiny": 224, "legacy_xception": 96}


@pytest.mark.parametrize("name", NETWORKS.split())
def test_a_family(name, tmp_path):
    torch.manual_seed(0)
    options = {"img_size": 64} if name in ("visformer_tiny", "levit_128s") else {}
    size = 64 if options else SIZES.get(name, 64)
    model, images = timm.create_model(name, num_classes=10, **options), torch.randn(8, 3, size, size)
    for norm in model.modules():  # statistics of these images, as training would have given it
        if isinstance(norm, _BatchNorm):
            norm.momentum = None
            if norm.weight is not None:
                torch.nn.init.uniform_(norm.weight, 0.5, 1)
    with torch.no_grad():
        model.train()(images)
    model.eval()

    layers = dict(matrix_layers(model, usage(model, images[:1])[0]))
    whole = Plan(tuple(Group((name,), 0, min(unfolded_shape(layer))) for name, layer in layers.items()))
    exact = copy.deepcopy(model).double()  # float32 alone is wrong by 1e-3 in some networks with random weights
    with torch.no_grad():
        expected, found = exact(images.double()), apply_plan(exact, whole)(images.double())
    torch.testing.assert_close(found, expected, atol=1e-8 * float(expected.abs().max()), rtol=0)

    result = compress(model, [images], params=1.3, share=False, refit=False)
    small = result.model.eval()
    assert num_parameters(model) >= 1.3 * num_parameters(small)
    save_compressed(tmp_path / "small", small, result.plan)
    loaded = load_compressed(tmp_path / "small", timm.create_model(name, num_classes=10, **options)).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), small(images))
    assert to_onnx(small, images[:2])
