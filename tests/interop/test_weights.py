"""Other systems' names: read by what is there, written back bit for bit."""

import numpy as np
import pytest
from trees import assert_same_trees

from retina_jax.config import leaves
from retina_jax.config.fields import depending
from retina_jax.errors import UserError
from retina_jax.interop.export import export_names, note_of
from retina_jax.interop.files import read_arrays, write_arrays
from retina_jax.interop.weights import read_weights

GOLDEN = {
    "torchvision_v1": ("torchvision RetinaNet", "P5", "none"),
    "torchvision_v2": ("torchvision RetinaNet", "C5", "group"),
    "detectron2": ("Detectron2 RetinaNet", "C5", "none"),
}


@pytest.fixture
def saved(tmp_path):
    def save(arrays, name="weights.safetensors", note=None):
        write_arrays(tmp_path / name, arrays, note)
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


@pytest.mark.parametrize("system", ["torchvision", "retina_jax"])
def test_mobilenet_goes_there_and_back(config_of, random_weights, saved, system):
    tree = random_weights(config_of(backbone="mobilenet_v2", width=64))
    arrays = export_names(tree, system)
    imported = read_weights(saved(arrays))
    assert_same_trees(tree, imported.tree)
    assert imported.unknown == ()
    assert imported.expects["model.backbone"] == "mobilenet_v2"
    assert imported.expects["model.width"] == 64
    if system == "torchvision":
        assert arrays["backbone.body.0.0.weight"].shape == (32, 3, 3, 3)
        assert arrays["backbone.body.14.conv.1.0.weight"].shape == (576, 1, 3, 3)
        assert arrays["backbone.body.17.conv.2.weight"].shape == (320, 960, 1, 1)


def test_the_width_of_a_narrow_mobilenet_comes_from_its_note(config_of, random_weights, saved):
    """Other widths may have the same channels."""
    config = config_of(backbone="mobilenet_v2", width=12)
    arrays = export_names(random_weights(config), "retina_jax")
    assert "model.width" not in read_weights(saved(arrays)).expects
    noted = saved(arrays, "noted.safetensors", note_of(config, "retina_jax"))
    assert read_weights(noted).expects["model.width"] == 12


def test_imagenets_mobilenet_is_read(shared_weights):
    imported = read_weights(shared_weights / "mobilenet_v2-b0353104.pth")
    assert imported.system == "torchvision MobileNetV2"
    assert imported.unknown == ()
    assert imported.expects["data.pixel_order"] == "RGB"
    stem = imported.tree["params"]["backbone"]["stem_conv"]["kernel"]
    assert stem.shape == (3, 3, 3, 32)
    left_out = {name.split(".")[0] for name in imported.ignored if "num_batches" not in name}
    assert left_out == {"classifier", "features"}


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


AFFINE = {"scale": "s", "bias": "b"}
"""Of Detectron: the statistics are in them."""
NORMS = {
    "Detectron, affine": AFFINE,
    "Detectron": {**AFFINE, "mean": "rm", "var": "riv"},
    # the names that Detectron2 lists when it loads its zoo's MSRA/R-50.pkl
    "Detectron2": {"scale": "gamma", "bias": "beta", "mean": "running_mean", "var": "running_var"},
}


def caffe2_resnet50(random_weights, config_of, spelling):
    """Arrays as in a zoo's R-50.pkl, and the parts of the backbone that they are."""
    branches = {"1": "branch2a", "2": "branch2b", "3": "branch2c"}
    trees = random_weights(config_of(backbone="resnet50"))
    backbone = {kind: trees[kind]["backbone"] for kind in ("params", "batch_stats")}
    arrays = {"fc1000_w": np.ones((10, 5), np.float32), "fc1000_b": np.ones(10, np.float32)}
    arrays |= {"conv1_b": np.ones(16, np.float32), "conv1_w_momentum": np.ones(3, np.float32)}
    arrays["conv1_w"] = backbone["params"]["stem_conv"]["kernel"].transpose(3, 2, 0, 1)
    for part in backbone.values():
        for module, layers in part.items():
            start = module.replace("stage", "res").replace("_block", "_")
            if module.startswith("stem"):
                start, layers = "res", {"norm": layers}
            for name, values in layers.items():
                branch = "conv1" if start == "res" else branches.get(name[-1], "branch1")
                for parameter, value in values.items():
                    if parameter in spelling:
                        arrays[f"{start}_{branch}_bn_{spelling[parameter]}"] = value
                    elif parameter == "kernel" and start != "res":
                        arrays[f"{start}_{branch}_w"] = value.transpose(3, 2, 0, 1)
    return arrays, backbone


@pytest.mark.parametrize("spelling", NORMS)
def test_caffe2_names_are_read(random_weights, config_of, saved, spelling):
    arrays, backbone = caffe2_resnet50(random_weights, config_of, NORMS[spelling])
    per_norm = len(NORMS[spelling])
    assert len(arrays) == 53 + 53 * per_norm + 4  # convolutions, their norms, what is ignored
    imported = read_weights(saved(arrays, "R-50.pkl"))
    assert imported.system == "Caffe2 ResNet"
    assert set(imported.ignored) == {"fc1000_w", "fc1000_b", "conv1_b", "conv1_w_momentum"}
    assert imported.unknown == ()
    assert_same_trees(backbone["params"], imported.tree["params"]["backbone"])
    if per_norm == 4:
        assert_same_trees(backbone["batch_stats"], imported.tree["batch_stats"]["backbone"])
    assert imported.expects["data.pixel_order"] == "BGR"
    assert imported.expects["data.std"] == (1, 1, 1)
    assert imported.expects["model.stride_in_1x1"] is True
    assert imported.expects["model.norm_eps"] == 1e-5


def test_a_caffe2_norm_without_its_statistics_is_not_made_up(random_weights, config_of, saved):
    arrays, _ = caffe2_resnet50(random_weights, config_of, NORMS["Detectron2"])
    del arrays["res4_0_branch1_bn_running_var"]
    imported = read_weights(saved(arrays, "R-50.pkl"))
    assert "var" not in imported.tree["batch_stats"]["backbone"]["stage4_block0"]["shortcut_norm"]


def test_caffe2_norms_are_their_scale_to_the_bit(random_weights, config_of, saved):
    arrays, _ = caffe2_resnet50(random_weights, config_of, AFFINE)
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
    with pytest.raises(UserError, match="class_head/conv1/bias is before a group norm"):
        read_weights(saved(arrays))


def test_strange_names_are_kept_to_be_told(random_weights, config_of, saved):
    arrays = export_names(random_weights(config_of()), "torchvision")
    arrays["head.mask.weight"] = np.ones(3, np.float32)
    assert read_weights(saved(arrays)).unknown == ("head.mask.weight",)


def test_files_of_no_known_system(saved):
    with pytest.raises(
        UserError, match=r"has parameters such as features.0.weight, which match no supported"
    ):
        read_weights(saved({"features.0.weight": np.ones(3, np.float32)}))


def test_weights_that_are_not_finite(random_weights, config_of, saved):
    arrays = export_names(random_weights(config_of()), "torchvision")
    arrays["backbone.body.conv1.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="backbone/stem_conv/kernel has non-finite values"):
        read_weights(saved(arrays))


def test_torchvisions_first_shipped_model_has_no_eps(golden_weights, tmp_path):
    data = golden_weights("torchvision_v1").read_bytes()
    path = tmp_path / "retinanet_resnet50_fpn_coco-eeacb38b.safetensors"
    path.write_bytes(data)
    assert read_weights(path).expects["model.norm_eps"] == 0
    assert read_weights(golden_weights("torchvision_v1")).expects["model.norm_eps"] == 1e-5


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_our_own_files_say_what_their_weights_were_made_for(
    config_of, random_weights, saved, suffix
):
    if suffix == ".pth":
        pytest.importorskip("torch")
    # C5 and P5 have as many channels, so that the shapes do not tell
    config = config_of(fpn_channels=512, backbone="resnet18", width=64, p6_from="P5", norm_eps=1e-3)
    config.data.pixel_order = "BGR"
    config.data.mean = (103.53, 116.28, 123.675)
    config.anchors.order = "ratio_major"
    config.anchors.octaves = (0.0, 0.5)
    tree = random_weights(config)
    path = saved(export_names(tree, "retina_jax"), f"ours{suffix}", note_of(config, "retina_jax"))
    imported = read_weights(path)
    assert_same_trees(tree, imported.tree)
    assert imported.unknown == ()
    assert "loss.dfl_bins" not in imported.expects, "stored only with loss.box=dfl"
    for name in set(depending("weights")) - {"loss.dfl_bins"}:
        assert imported.expects[name] == leaves(config)[name]
    assert {"model.p6_from", "model.norm_eps", "data.pixel_order", "anchors.order"} < {
        *depending("weights")
    }


def test_other_systems_names_come_without_a_note(config_of):
    assert note_of(config_of(), "torchvision") == {}


def test_a_note_that_no_config_can_hold(config_of, random_weights, saved):
    arrays = export_names(random_weights(config_of()), "retina_jax")
    for note in ({"anchors.order": "backwards"}, {"anchors.octaves": "x"}, {"data.mean": [1.0]}):
        with pytest.raises(UserError, match="stores an invalid config") as caught:
            read_weights(saved(arrays, note=note))
        assert "\n" not in str(caught.value)
    unknown = read_weights(saved(arrays, note={"model.head_layout": "new", "seed": 3}))
    assert not {"model.head_layout", "seed"} & unknown.expects.keys()
