"""The table of published weights: each row against its file's name and against torchvision."""

import re

import pytest
from torchvision_cpu import import_torchvision

from retina_jax.config.backbones import BACKBONES
from retina_jax.errors import UserError
from retina_jax.interop import catalogue
from retina_jax.interop.catalogue import CATALOGUE, Digest, find, is_name
from retina_jax.interop.files import SUFFIXES

ROWS = list(CATALOGUE.values())
COMPUTED = {
    "torchvision:mobilenet_v2": "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
}
"""Hashes of files that were at hand."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_is_well_formed(row):
    assert re.fullmatch(r"https://[a-z.]+/[\w./-]+", row.url)
    assert row.path.suffix in SUFFIXES
    assert not row.path.is_absolute()
    assert ".." not in row.path.parts
    assert row.licence
    assert row.pixels in catalogue.PIXELS
    assert is_name(row.name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_hashes_are_those_of_the_file_names(row):
    if row.system == "torchvision":
        digits = re.fullmatch(r"\w+-([0-9a-f]{8})\.pth", row.path.name)[1]
        assert row.digest == Digest("sha256", COMPUTED.get(row.name, digits))
        assert row.digest.digits.startswith(digits)
        assert row.digest.is_whole == (row.name in COMPUTED)
    elif match := re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", row.path.name):
        assert row.digest == Digest("md5", match[1])
    else:
        assert row.digest is None


def test_files_do_not_share_a_path():
    assert len({row.path for row in ROWS}) == len({row.url for row in ROWS}) == len(ROWS)


def test_every_backbone_has_a_name():
    assert {f"torchvision:{name}" for name in BACKBONES} <= CATALOGUE.keys()


def test_the_table_is_torchvisions():
    torchvision = import_torchvision()
    theirs = {}
    for name in [*BACKBONES, "mobilenet_v2"]:
        for weights in torchvision.models.get_model_weights(name):
            suffix = {"IMAGENET1K_V1": "", "IMAGENET1K_V2": "_v2"}[weights.name]
            theirs[f"torchvision:{name}{suffix}"] = weights
    for name in ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"):
        theirs[f"torchvision:{name}"] = torchvision.models.get_model_weights(name).COCO_V1
    assert theirs.keys() == {row.name for row in ROWS if row.system == "torchvision"}
    for name, weights in theirs.items():
        assert CATALOGUE[name].url == weights.url
        assert CATALOGUE[name].mebibytes == weights.meta["_file_size"]
        if ap := weights.meta["_metrics"].get("COCO-val2017"):
            assert CATALOGUE[name].what.endswith(f"AP {ap['box_map']}")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("torchvision:resnet5", "torchvision:resnet50"),
        ("torchvison:resnet50", "torchvision:resnet50"),
        ("torchvision:R-50", "detectron2:MSRA/R-50"),
        ("detectron2://ImageNetPretrained/MSRA/R-101.pkl", "detectron2:MSRA/R-101"),
        ("detectron2:COCO-Detection/retinanet_R_50_FPN_3x", "detectron2:retinanet_R_50_FPN_3x"),
    ],
)
def test_unknown_names_list_similar_ones(name, near):
    assert is_name(name)
    with pytest.raises(UserError, match=re.escape(near)) as raised:
        find(name, "config.model.init_from")
    assert str(raised.value).startswith(f"config.model.init_from={name!r} is not a known name")
    assert "retina-jax import-weights --list" in str(raised.value)


def test_names_that_resemble_none_get_no_advice():
    with pytest.raises(UserError, match="is not a known name; retina-jax import-weights --list"):
        find("torchvision:vgg", "--weights")


@pytest.mark.parametrize("path", ["runs/first", "resnet50.pth", "gs://bucket/run", "s3://b/x.pth"])
def test_paths_and_addresses_are_not_names(path):
    assert not is_name(path)


def test_a_folder_with_a_colon_is_not_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_name("runs:first")
    (tmp_path / "runs:first").mkdir()
    assert not is_name("runs:first")
