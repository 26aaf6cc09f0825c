"""Other systems' names: read by what is there, written back bit for bit."""

import numpy as np
import pytest
from trees import assert_same_trees

from retina_jax.errors import UserError
from retina_jax.interop.export import export_names
from retina_jax.interop.files import read_arrays, write_arrays
from retina_jax.interop.weights import read_weights

GOLDEN = {
    "torchvision_v1": ("torchvision RetinaNet", "P5", "none"),
    "torchvision_v2": ("torchvision RetinaNet", "C5", "group"),
    "detectron2": ("Detectron2 RetinaNet", "C5", "none"),
}


@pytest.fixture
def saved(tmp_path):
    def save(arrays, name="weights.safetensors"):
        write_arrays(tmp_path / name, arrays)
        return tmp_path / name

    return save


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_weights_come_back_bit_for_bit(golden_weights, case):
    system, p6_from, head_norm = GOLDEN[case]
    theirs = read_arrays(golden_weights(case))
    imported = read_weights(golden_weights(case))
    assert imported.system == system
    assert imported.unknown == ()
    assert imported.expects["model.backbone"] == "resnet50"
    assert imported.expects["model.width"] == 16
    assert imported.expects["model.p6_from"] == p6_from
    assert imported.expects["model.head_norm"] == head_norm
    back = export_names(imported.tree, case.split("_")[0], batch_counters=head_norm == "group")
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        if not name.endswith("num_batches_tracked"):
            assert back[name].tobytes() == value.tobytes()
        assert back[name].shape == value.shape
        assert back[name].dtype == value.dtype


@pytest.mark.parametrize("system", ["torchvision", "detectron2", "retina_jax"])
@pytest.mark.parametrize("head_norm", ["none", "group"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_our_weights_go_there_and_back(
    config_of, random_weights, saved, backbone, head_norm, system
):
    tree = random_weights(config_of(backbone=backbone, head_norm=head_norm))
    imported = read_weights(saved(export_names(tree, system)))
    assert_same_trees(tree, imported.tree)
    assert imported.unknown == ()
    assert imported.expects["model.backbone"] == backbone
    assert imported.expects["model.head_norm"] == head_norm


def test_both_systems_hold_the_same_kernel(config_of, random_weights):
    tree = random_weights(config_of(backbone="resnet50"))
    ours = tree["params"]["backbone"]["stage3_block1"]["conv2"]["kernel"]
    torchvision = export_names(tree, "torchvision")["backbone.body.layer2.1.conv2.weight"]
    detectron2 = export_names(tree, "detectron2")["backbone.bottom_up.res3.1.conv2.weight"]
    np.testing.assert_array_equal(torchvision, detectron2)
    assert torchvision[3, 5, 1, 2] == ours[1, 2, 5, 3]


def test_names_of_older_torchvision_files_are_read(config_of, random_weights, saved):
    tree = random_weights(config_of(backbone="resnet18"))
    old = {}
    for name, value in export_names(tree, "torchvision").items():
        for n in range(4):
            name = name.replace(f"head.conv.{n}.0", f"head.conv.{2 * n}")
        for block in ("inner_blocks", "layer_blocks"):
            for n in range(3):
                name = name.replace(f"{block}.{n}.0", f"{block}.{n}")
        old[name] = value
    assert "head.classification_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.bias" in old
    assert_same_trees(tree, read_weights(saved(old)).tree)


def caffe2_resnet50(random_weights, config_of):
    """Arrays as in the zoo's R-50.pkl, and the backbone that they are."""
    letters = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    tree = random_weights(config_of(backbone="resnet50"))
    arrays = {"fc1000_w": np.ones((10, 5), np.float32), "conv1_w_momentum": np.ones(3, np.float32)}
    for module, layers in tree["params"]["backbone"].items():
        if module == "stem_conv":
            arrays["conv1_w"] = layers["kernel"].transpose(3, 2, 0, 1)
        elif module == "stem_norm":
            arrays |= {"res_conv1_bn_s": layers["scale"], "res_conv1_bn_b": layers["bias"]}
        else:
            start = module.replace("stage", "res").replace("_block", "_")
            for name, values in layers.items():
                branch = letters.get(name.replace("norm", "conv"), "branch1")
                if "kernel" in values:
                    arrays[f"{start}_{branch}_w"] = values["kernel"].transpose(3, 2, 0, 1)
                else:
                    arrays[f"{start}_{branch}_bn_s"] = values["scale"]
                    arrays[f"{start}_{branch}_bn_b"] = values["bias"]
    return arrays, tree["params"]["backbone"]


def test_caffe2_names_are_read(random_weights, config_of, saved):
    arrays, backbone = caffe2_resnet50(random_weights, config_of)
    imported = read_weights(saved(arrays, "R-50.pkl"))
    assert imported.system == "Caffe2 ResNet"
    assert set(imported.ignored) == {"fc1000_w", "conv1_w_momentum"}
    assert imported.unknown == ()
    assert_same_trees(backbone, imported.tree["params"]["backbone"])
    assert imported.expects["data.pixel_order"] == "BGR"
    assert imported.expects["data.std"] == (1, 1, 1)
    assert imported.expects["model.stride_in_1x1"] is True


def test_caffe2_norms_are_their_scale_to_the_bit(random_weights, config_of, saved):
    arrays, _ = caffe2_resnet50(random_weights, config_of)
    imported = read_weights(saved(arrays, "R-50.pkl"))
    statistics = imported.tree["batch_stats"]["backbone"]["stage4_block0"]["shortcut_norm"]
    eps = np.float32(imported.expects["model.norm_eps"])
    assert (statistics["mean"] == 0).all()
    assert (1 / np.sqrt(statistics["var"] + eps) == 1).all()


def test_grouped_caffe2_models_were_made_for_other_pixels(random_weights, config_of, saved):
    tree = random_weights(config_of(backbone="resnext101_32x8d"))
    imported = read_weights(saved(export_names(tree, "detectron2")))
    assert imported.expects["data.std"] == (57.375, 57.12, 58.395)
    assert imported.expects["model.stride_in_1x1"] is False


def test_what_a_detectron2_file_says_of_pixels_counts(random_weights, config_of, saved):
    arrays = export_names(random_weights(config_of(backbone="resnet50")), "detectron2")
    arrays["pixel_mean"] = np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    arrays["pixel_std"] = np.float32([58.395, 57.12, 57.375]).reshape(3, 1, 1)
    arrays["anchor_generator.cell_anchors.0"] = np.zeros((9, 4), np.float32)
    imported = read_weights(saved(arrays, "model_final.pkl"))
    assert len(imported.ignored) == 3
    assert imported.expects["data.pixel_order"] == "RGB"
    assert imported.expects["data.std"] == (58.395, 57.12, 57.375)


def test_detectron2s_copies_of_torchvision_are_read(random_weights, config_of, saved):
    arrays = export_names(random_weights(config_of(backbone="resnet50")), "detectron2")
    start = "backbone.bottom_up."
    arrays = {n.removeprefix(start): v for n, v in arrays.items() if n.startswith(start)}
    arrays["stem.fc.weight"] = np.ones((5, 3), np.float32)
    imported = read_weights(saved(arrays, "R-50.pkl"))
    assert imported.system == "Detectron2 ResNet"
    assert imported.ignored == ("stem.fc.weight",)
    assert imported.expects["data.pixel_order"] == "RGB"


def test_a_bias_before_a_group_norm_must_be_nought(random_weights, config_of, saved):
    tree = random_weights(config_of(head_norm="group"))
    arrays = export_names(tree, "detectron2")
    assert not arrays["head.cls_subnet.3.bias"].any()
    arrays["head.cls_subnet.3.bias"] = np.ones(32, np.float32)
    with pytest.raises(UserError, match="class_head/conv1/bias stands before a group norm"):
        read_weights(saved(arrays))


def test_strange_names_are_kept_to_be_told(random_weights, config_of, saved):
    arrays = export_names(random_weights(config_of()), "torchvision")
    arrays["head.mask.weight"] = np.ones(3, np.float32)
    assert read_weights(saved(arrays)).unknown == ("head.mask.weight",)


def test_files_of_no_known_system(saved):
    with pytest.raises(UserError, match=r"holds names such as features.0.weight, of no system"):
        read_weights(saved({"features.0.weight": np.ones(3, np.float32)}))


def test_weights_that_are_not_finite(random_weights, config_of, saved):
    arrays = export_names(random_weights(config_of()), "torchvision")
    arrays["backbone.body.conv1.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="backbone/stem_conv/kernel holds numbers that are not"):
        read_weights(saved(arrays))


def test_torchvisions_first_shipped_model_has_no_eps(golden_weights, tmp_path):
    data = golden_weights("torchvision_v1").read_bytes()
    path = tmp_path / "retinanet_resnet50_fpn_coco-eeacb38b.safetensors"
    path.write_bytes(data)
    assert read_weights(path).expects["model.norm_eps"] == 0
    assert read_weights(golden_weights("torchvision_v1")).expects["model.norm_eps"] == 1e-5
