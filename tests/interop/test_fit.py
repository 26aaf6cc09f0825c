"""Imported weights fitted to a network: classes, anchors, missing layers, reports."""

import jax
import numpy as np
import pytest
from trees import assert_same_trees

from retina_jax.errors import UserError
from retina_jax.interop.export import (
    check_expressible,
    export_names,
    export_weights,
    note_of,
)
from retina_jax.interop.files import write_arrays
from retina_jax.interop.fit import COCO_IDS, fit, reorder_anchors, take_classes
from retina_jax.interop.graft import MisfitError
from retina_jax.interop.weights import import_arrays, read_weights

DENSE = tuple(range(3))


def imported(tree, system="torchvision"):
    return import_arrays(export_names(tree, system), "file")


def test_a_whole_network_is_taken_whole(config_of, random_weights):
    config = config_of()
    given, fresh = random_weights(config), random_weights(config, seed=1)
    fitted = fit(imported(given, "detectron2"), fresh, config, DENSE, "file")
    assert fitted.fresh == fitted.notes == ()
    assert_same_trees(fitted.tree, given)
    # made by Detectron2 for other pixels: said, with the flag
    assert any("--config.data.pixel_order=BGR" in line for line in fitted.differs)


def test_a_backbone_alone_says_what_stays_fresh(config_of, random_weights):
    config = config_of()
    given, fresh = random_weights(config), random_weights(config, seed=1)
    names = export_names(given, "torchvision")
    start = "backbone.body."
    resnet = {n.removeprefix(start): v for n, v in names.items() if n.startswith(start)}
    fitted = fit(import_arrays(resnet, "file"), fresh, config, DENSE, "file")
    assert fitted.fresh == ("fpn", "class_head", "box_head")
    assert (
        "initialised randomly (the weights contain only a backbone): fpn, class_head, box_head"
        in fitted.report()
    )
    assert_same_trees(fitted.tree["params"]["backbone"], given["params"]["backbone"])
    assert_same_trees(fitted.tree["params"]["fpn"], fresh["params"]["fpn"])


def test_another_number_of_classes_keeps_all_but_the_last_layer(config_of, random_weights):
    config = config_of()
    given, fresh = random_weights(config, 5), random_weights(config, 3, seed=1)
    fitted = fit(imported(given), fresh, config, DENSE, "file")
    assert fitted.fresh == tuple(
        f"params/class_head/predict/{part}" for part in ("bias", "kernel")
    ) or set(fitted.fresh) == {f"params/class_head/predict/{p}" for p in ("bias", "kernel")}
    assert any("(the classes differ)" in line for line in fitted.report())
    assert_same_trees(fitted.tree["params"]["box_head"]["conv0"],
                      given["params"]["box_head"]["conv0"])  # fmt: skip


def own_file(path, tree, config):
    """`export_weights.py --to=retina_jax`."""
    write_arrays(path, export_weights(tree, config, "retina_jax"), note_of(config, "retina_jax"))
    return read_weights(path)


def test_our_own_file_is_reordered_and_its_pixels_are_told(config_of, random_weights, tmp_path):
    more = {"centerness": True, "box_scale_per_level": True}
    there, here = config_of(norm_eps=1e-3, **more), config_of(**more)
    there.anchors.order = "ratio_major"
    there.data.pixel_order = "BGR"
    there.anchors.scale = 2.0
    tree = random_weights(there)
    imported = own_file(tmp_path / "ours.safetensors", tree, there)
    fitted = fit(imported, random_weights(here, seed=1), here, DENSE, "file")
    assert fitted.notes == ("anchors reordered from ratio_major to size_major",)
    assert_same_trees(fitted.tree, reorder_anchors(tree, 3, 3, "size_major"))
    central = tree["params"]["box_head"]["centerness"]["bias"].reshape(3, 3).T.ravel()
    np.testing.assert_array_equal(fitted.tree["params"]["box_head"]["centerness"]["bias"], central)
    told = "\n".join(fitted.differs)
    for flag in ("data.pixel_order=BGR", "model.norm_eps=0.001", "anchors.scale=2.0"):
        assert f"set --config.{flag}" in told
    back = fit(imported, random_weights(there, seed=1), there, DENSE, "file")
    assert back.notes == back.differs == ()
    assert_same_trees(back.tree, tree)


def test_an_order_that_nobody_tells_is_said(config_of, random_weights):
    config = config_of()
    given = import_arrays(export_names(random_weights(config), "retina_jax"), "file")
    fitted = fit(given, random_weights(config, seed=1), config, DENSE, "file")
    assert fitted.notes == (
        "the weights do not state the order of their anchors; assuming "
        "config.anchors.order=size_major",
    )


LAST_LAYERS = {
    f"params/{head}/predict/{part}"
    for head in ("class_head", "box_head")
    for part in ("bias", "kernel")
}


@pytest.mark.parametrize("loss", ["focal", "softmax_focal"])
def test_boxes_of_each_class_stay_fresh_with_another_number_of_classes(
    config_of, random_weights, tmp_path, loss
):
    config = config_of(class_specific_boxes=True)
    config.loss.classification = loss
    given, fresh = random_weights(config, 5), random_weights(config, 3, seed=1)
    imported = own_file(tmp_path / "ours.safetensors", given, config)
    fitted = fit(imported, fresh, config, DENSE, "file")
    assert set(fitted.fresh) == LAST_LAYERS
    assert any("(the classes differ)" in line for line in fitted.report())
    assert_same_trees(fitted.tree["params"]["box_head"]["predict"],
                      fresh["params"]["box_head"]["predict"])  # fmt: skip
    assert_same_trees(fitted.tree["params"]["box_head"]["conv0"],
                      given["params"]["box_head"]["conv0"])  # fmt: skip


@pytest.mark.parametrize("classes", [3, 5])
def test_one_box_for_all_classes_is_no_other_number_of_classes(
    config_of, random_weights, tmp_path, classes
):
    there, here = config_of(), config_of(class_specific_boxes=True)
    imported = own_file(tmp_path / "ours.safetensors", random_weights(there, classes), there)
    with pytest.raises(MisfitError, match=r": set --config\.model\.class_specific_boxes=False"):
        fit(imported, random_weights(here, 3), here, DENSE, "file")


def config_with_bins(config_of, bins, **model):
    config = config_of(**model)
    if bins:
        config.loss.update({"box": "dfl", "dfl_bins": bins})
    return config


@pytest.mark.parametrize(
    ("there", "here", "values", "flag"),
    [
        (0, 16, (4, 68), "--config.loss.box=giou"),
        (16, 0, (68, 4), "--config.loss.box=dfl --config.loss.dfl_bins=16"),
        (16, 8, (68, 36), "--config.loss.box=dfl --config.loss.dfl_bins=16"),
    ],
)
def test_another_box_head_keeps_all_but_its_last_layer(
    config_of, random_weights, tmp_path, there, here, values, flag
):
    there, here = (config_with_bins(config_of, bins) for bins in (there, here))
    given, fresh = random_weights(there), random_weights(here, seed=1)
    fitted = fit(own_file(tmp_path / "a.safetensors", given, there), fresh, here, DENSE, "file")
    assert set(fitted.fresh) == {name for name in LAST_LAYERS if "box_head" in name}
    (line,) = fitted.report()
    assert "predicts {} values per box, this one {}; to keep it, set ".format(*values) in line
    assert flag in line
    assert "classes differ" not in line
    assert_same_trees(fitted.tree["params"]["class_head"], given["params"]["class_head"])
    assert_same_trees(fitted.tree["params"]["box_head"]["predict"],
                      fresh["params"]["box_head"]["predict"])  # fmt: skip


def test_distributions_of_nine_anchors_start_one_anchor_with_deltas(
    config_of, random_weights, tmp_path
):
    there, here = config_with_bins(config_of, 16, box_scale_per_level=True), config_of()
    here.anchors.update({"octaves": (0.0,), "ratios": (1.0,)})
    imported = own_file(tmp_path / "ours.safetensors", random_weights(there), there)
    fitted = fit(imported, random_weights(here, seed=1), here, DENSE, "file")
    assert set(fitted.fresh) == LAST_LAYERS


def test_a_torchvision_detector_starts_distributions(config_of, random_weights):
    given = random_weights(config_of())
    here = config_with_bins(config_of, 16, box_scale_per_level=True)
    fitted = fit(imported(given), random_weights(here, seed=1), here, DENSE, "file")
    scales = {f"params/box_head/scale{level}" for level in range(3, 8)}
    assert set(fitted.fresh) == {name for name in LAST_LAYERS if "box_head" in name} | scales


def test_distributions_are_taken_and_reordered_whole(config_of, random_weights, tmp_path):
    there, here = (config_with_bins(config_of, 16) for _ in range(2))
    there.anchors.order = "ratio_major"
    tree = random_weights(there)
    imported = own_file(tmp_path / "ours.safetensors", tree, there)
    fitted = fit(imported, random_weights(here, seed=1), here, DENSE, "file")
    assert fitted.fresh == ()
    bias, moved = (
        t["params"]["box_head"]["predict"]["bias"].reshape(3, 3, 68) for t in (tree, fitted.tree)
    )
    np.testing.assert_array_equal(moved, bias.swapaxes(0, 1))


@pytest.mark.parametrize("field", ["centerness", "box_scale_per_level"])
def test_a_head_with_other_layers_names_the_flag(config_of, random_weights, tmp_path, field):
    there, here = config_of(), config_of(**{field: True})
    for one, other, value in ((there, here, False), (here, there, True)):
        imported = own_file(tmp_path / "ours.safetensors", random_weights(one), one)
        with pytest.raises(MisfitError, match=rf": set --config\.model\.{field}={value} for"):
            fit(imported, random_weights(other), other, DENSE, "file")


def test_a_backbone_of_another_width_names_the_flag_in_one_line(config_of, random_weights):
    names = export_names(random_weights(config_of(backbone="resnet50", width=32)), "torchvision")
    start = "backbone.body."
    resnet = {n.removeprefix(start): v for n, v in names.items() if n.startswith(start)}
    config = config_of(backbone="resnet50", width=16)
    with pytest.raises(MisfitError, match=r": set --config\.model\.width=32 for") as caught:
        fit(import_arrays(resnet, "file"), random_weights(config), config, DENSE, "file")
    assert "\n" not in str(caught.value)


def test_coco_is_taken_out_of_91_slots_by_its_ids(config_of, random_weights):
    config = config_of()
    config.anchors.order = "ratio_major"  # torchvision's: nothing is reordered
    given, fresh = random_weights(config, 91), random_weights(config, 80, seed=1)
    fitted = fit(imported(given), fresh, config, COCO_IDS, "file")
    assert fitted.fresh == ()
    assert fitted.notes == ("selected COCO's 80 classes from 91 class outputs",)
    slots = given["params"]["class_head"]["predict"]["bias"].reshape(9, 91)
    taken = fitted.tree["params"]["class_head"]["predict"]["bias"].reshape(9, 80)
    for label, category_id in enumerate(COCO_IDS):
        np.testing.assert_array_equal(taken[:, label], slots[:, category_id])


def test_boxes_of_coco_are_taken_with_their_classes(config_of, random_weights):
    config = config_of(class_specific_boxes=True)
    given, fresh = random_weights(config, 91), random_weights(config, 80, seed=1)
    imported = import_arrays(export_names(given, "retina_jax"), "file")
    fitted = fit(imported, fresh, config, COCO_IDS, "file")
    assert fitted.fresh == ()
    slots = given["params"]["box_head"]["predict"]["kernel"].reshape(3, 3, 32, 9, 91, 4)
    taken = fitted.tree["params"]["box_head"]["predict"]["kernel"].reshape(3, 3, 32, 9, 80, 4)
    np.testing.assert_array_equal(taken, slots[..., list(COCO_IDS), :])


def test_other_ids_do_not_pass_for_coco(config_of, random_weights):
    config = config_of()
    given, fresh = random_weights(config, 91), random_weights(config, 80, seed=1)
    fitted = fit(imported(given), fresh, config, tuple(range(80)), "file")
    assert set(fitted.fresh) == {f"params/class_head/predict/{p}" for p in ("bias", "kernel")}


def test_a_network_of_another_shape_names_the_flags_and_all_names(config_of, random_weights):
    config = config_of(backbone="resnet50")
    given = random_weights(config_of(backbone="resnet18"))
    with pytest.raises(MisfitError) as caught:
        fit(imported(given), random_weights(config), config, DENSE, "file")
    assert ": set --config.model.backbone=resnet18" in str(caught.value)
    assert len(caught.value.wrong) > 100
    assert "\n" not in str(caught.value)


def test_reordered_anchors_say_the_same_of_the_same_anchor(config_of, random_weights):
    tree = random_weights(config_of())
    there = reorder_anchors(tree, 3, 3, "ratio_major")
    bias, moved = (t["params"]["box_head"]["predict"]["bias"].reshape(9, 4) for t in (tree, there))
    for octave in range(3):
        for ratio in range(3):  # size_major counts ratios within a size
            np.testing.assert_array_equal(moved[ratio * 3 + octave], bias[octave * 3 + ratio])
    assert_same_trees(reorder_anchors(there, 3, 3, "size_major"), tree)


def test_take_classes_by_hand():
    bias = np.arange(2 * 4, dtype=np.float32)  # two anchors, four slots
    boxes = np.arange(2 * 4, dtype=np.float32)  # one for all slots
    tree = {"params": {"class_head": {"predict": {"bias": bias}},
                       "box_head": {"predict": {"bias": boxes}}}, "batch_stats": {}}  # fmt: skip
    taken = take_classes(tree, (1, 3), 4)["params"]
    assert taken["class_head"]["predict"]["bias"].tolist() == [1, 3, 5, 7]
    assert taken["box_head"]["predict"]["bias"].tolist() == boxes.tolist()


@pytest.mark.parametrize(
    ("system", "field", "value"),
    [
        ("torchvision", "model.norm", "group"),
        ("detectron2", "model.head_norm", "batch"),
        ("torchvision", "model.class_specific_boxes", True),
        ("torchvision", "loss.classification", "softmax_focal"),
        ("torchvision", "loss.box", "dfl"),
        ("detectron2", "loss.box", "dfl"),
        ("detectron2", "model.p6_from", "P5"),
        ("detectron2", "model.backbone", "mobilenet_v2"),
        ("torchvision", "data.pixel_order", "BGR"),
        ("torchvision", "model.centerness", True),
        ("detectron2", "model.box_scale_per_level", True),
    ],
)
def test_what_they_cannot_express_is_refused_by_field_and_value(config_of, system, field, value):
    config = config_of(width=64, fpn_channels=64, head_channels=64)
    check_expressible(config, system)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"{system} cannot represent config\.{field}="):
        export_weights({}, config, system)


def test_trees_of_jax_arrays_are_exported(config_of, random_weights):
    tree = random_weights(config_of())
    plain = export_names(tree, "torchvision")
    assert_same_trees(plain, export_names(jax.tree.map(jax.numpy.asarray, tree), "torchvision"))
