"""Reads weights of any supported system, with the config fields they were trained for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from retina_jax.config import default_config, validate
from retina_jax.config.fields import depending
from retina_jax.config.values import tuples
from retina_jax.errors import UserError
from retina_jax.interop import names
from retina_jax.interop.files import read_file
from retina_jax.interop.structure import groups_of, has_bottlenecks, structure_of

RGB = {
    "data.pixel_order": "RGB",
    "data.mean": (123.675, 116.28, 103.53),
    "data.std": (58.395, 57.12, 57.375),
    "model.stride_in_1x1": False,
    "model.norm_eps": 1e-5,
}
"""For torchvision's ImageNet models, and Detectron2's copies of them."""
MSRA = {
    "data.pixel_order": "BGR",
    "data.mean": (103.53, 116.28, 123.675),
    "data.std": (1.0, 1.0, 1.0),
    "model.stride_in_1x1": True,
    "model.norm_eps": 1e-5,
}
"""For Detectron2's R-50 and R-101, with MSRA's backbone."""
FAIR_RESNEXT = {**MSRA, "data.std": (57.375, 57.12, 58.395), "model.stride_in_1x1": False}
"""For Detectron2's X-101."""
TORCHVISION_ANCHORS = {
    "anchors.order": "ratio_major",
    "anchors.offset": 0.0,
    "anchors.rounded": True,
    "anchors.truncate_sizes": True,
    "anchors.stride_from": "grid",
}
DETECTRON2_ANCHORS = {
    "anchors.order": "size_major",
    "anchors.offset": 0.0,
    "anchors.rounded": False,
    "anchors.truncate_sizes": False,
    "anchors.stride_from": "level",
}


CLASSES = "classes"
"""Key of a file's note: ``[[category id, name], …]`` by label."""
PIXEL_SCALE = "pixel_scale"
"""Key of a file's note: the 16-bit or float values that map to 0 and 255."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """Weights with our names, and what is known about them."""

    tree: dict[str, Any]
    """``{"params": …, "batch_stats": …}``, nested; NumPy float32."""
    system: str
    """For messages: "torchvision RetinaNet", "Caffe2 ResNet", …"""
    ignored: tuple[str, ...]
    """Names in the source that are not weights of the network."""
    unknown: tuple[str, ...]
    """Names in the source without a counterpart here."""
    expects: dict[str, Any]
    """Config fields with the values that the weights were trained for."""
    classes: tuple[tuple[int, str], ...] | None = None
    """Category id and name of each class, by label; None if not known."""
    pixel_scale: tuple[float, float] | None = None
    """The 16-bit or float values that map to 0 and 255; None: no such images, or not known."""


@dataclasses.dataclass(frozen=True)
class _System:
    name: str
    marker: str
    """A name that only files of this system contain."""
    pairs: Callable[[Collection[str]], Iterable[tuple[str, str]]]
    """The names in the file to pairs of their name and ours."""
    ignored: re.Pattern
    expects: Callable[[dict, dict[str, np.ndarray]], dict[str, Any]]
    """Our tree and the arrays in the file to `Imported.expects`."""


def _detectron2_pixels(tree: dict, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    found = FAIR_RESNEXT if groups_of(tree) > 1 else MSRA if has_bottlenecks(tree) else RGB
    found = dict(found)
    for field, name in (("data.mean", "pixel_mean"), ("data.std", "pixel_std")):
        if name in arrays and arrays[name].size == 3:  # stored by the first releases
            found[field] = tuple(round(float(v), 3) for v in arrays[name].reshape(-1))
    # ImageNet's mean is lowest in blue
    found["data.pixel_order"] = "BGR" if found["data.mean"][0] < found["data.mean"][2] else "RGB"
    return found


_SYSTEMS = (
    _System(
        "retina_jax",
        "params/backbone/stem_conv/kernel",
        lambda there: ((name, name) for name in there),
        re.compile("(?!)"),
        lambda tree, arrays: {},
    ),
    _System(
        "torchvision RetinaNet",
        "head.classification_head.cls_logits.weight",
        lambda there: (
            *names.torchvision_retinanet("backbone.body.0.0.weight" in there),
            *names.torchvision_retinanet_before_0_13(),
        ),
        names.TORCHVISION_IGNORED,
        lambda tree, arrays: {**RGB, **TORCHVISION_ANCHORS},
    ),
    _System(
        "Detectron2 RetinaNet",
        "head.cls_score.weight",
        lambda there: names.detectron2_retinanet("head.cls_subnet.1.weight" in there),
        names.DETECTRON2_IGNORED,
        lambda tree, arrays: {**_detectron2_pixels(tree, arrays), **DETECTRON2_ANCHORS},
    ),
    _System(
        "torchvision ResNet",
        "layer1.0.conv1.weight",
        lambda there: names.torchvision_resnet(),
        names.TORCHVISION_IGNORED,
        lambda tree, arrays: RGB,
    ),
    _System(
        "torchvision MobileNetV2",
        "features.1.conv.0.0.weight",
        lambda there: names.torchvision_mobilenet(),
        names.TORCHVISION_IGNORED,
        lambda tree, arrays: RGB,
    ),
    _System(
        "Detectron2 ResNet",  # the model zoo's are torchvision's, renamed
        "stem.conv1.weight",
        lambda there: names.detectron2_resnet(),
        names.DETECTRON2_IGNORED,
        lambda tree, arrays: RGB,
    ),
    _System(
        "Detectron2 ResNet",
        "backbone.bottom_up.stem.conv1.weight",
        lambda there: names.detectron2_resnet("backbone.bottom_up."),
        names.DETECTRON2_IGNORED,
        _detectron2_pixels,
    ),
    _System(
        "Caffe2 ResNet",
        "conv1_w",
        lambda there: names.caffe2_resnet(),
        names.CAFFE2_IGNORED,
        _detectron2_pixels,
    ),
)


def read_weights(path: str | Path) -> Imported:
    """The weights in a file; the parameter names determine the system.

    Raises `UserError` for a file that cannot be read, has names of no known system, or contains
    non-finite values.
    """
    arrays, note = read_file(path)
    return import_arrays(arrays, path, note)


def import_arrays(
    arrays: dict[str, np.ndarray], path: str | Path, note: dict[str, Any] | None = None
) -> Imported:
    """`read_weights` for arrays that were already read; ``path`` is for messages.

    ``note`` is the note in a file of this program.
    """
    system = next((s for s in _SYSTEMS if s.marker in arrays), None)
    if system is None:
        some = ", ".join(list(arrays)[:4])
        raise UserError(
            f"{path} has parameters such as {some}, which match no supported system; use weights "
            "of a torchvision or Detectron2 ResNet or RetinaNet, a torchvision MobileNetV2, a "
            "Caffe2 ResNet, or retina_jax"
        )
    table = dict(system.pairs(arrays))
    flat, ignored, unknown = {}, [], []
    for theirs, value in arrays.items():
        ours = table.get(theirs)
        if system.ignored.fullmatch(theirs):
            ignored.append(theirs)
        elif ours is None:
            unknown.append(theirs)
        elif ours in flat:
            raise UserError(f"{path} contains {ours} twice, once as {theirs}; remove one of them")
        elif system.name == "retina_jax":
            flat[ours] = value
        else:
            flat[ours] = names.to_our_layout(ours, value)
    for ours, value in flat.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {ours} has non-finite values; download or write it again")
    if system.name == "Caffe2 ResNet":
        _complete_affine_norms(flat)
    ignored += _drop_neutral_biases(flat, path)
    tree = {"params": {}, "batch_stats": {}, **flax.traverse_util.unflatten_dict(flat, sep="/")}
    noted = _checked(made_for(note or {}), path) if system.name == "retina_jax" else {}
    expects = {**system.expects(tree, arrays), **noted, **structure_of(tree)}
    of_torchvision = system.name == "torchvision RetinaNet"
    if of_torchvision and Path(path).name.startswith("retinanet_resnet50_fpn_coco"):
        # torchvision sets eps to 0 after loading this file, which was trained that way
        expects["model.norm_eps"] = 0.0
    own = note or {} if system.name == "retina_jax" else {}
    return Imported(
        tree,
        system.name,
        tuple(ignored),
        tuple(unknown),
        expects,
        _classes_of(own),
        _pixel_scale_of(own),
    )


def weights_of_run(
    tree: dict[str, Any],
    fields: dict[str, Any],
    classes: Sequence[tuple[int, str]] | None = None,
) -> Imported:
    """The weights of a checkpoint of this program.

    ``fields``: the leaves of its config, as stored in JSON. ``classes``: category id and name of
    each class, by label.
    """
    expects = {**made_for(fields), **structure_of(tree)}
    return Imported(
        tree, "retina_jax", (), (), expects, None if classes is None else tuple(classes)
    )


def made_for(fields: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a run's config, possibly read from JSON, that determine what weights mean.

    ``loss.dfl_bins`` is there only if the box head predicts distributions.
    """
    named = {name: tuples(fields[name]) for name in depending("weights") if name in fields}
    if fields.get("loss.box", "dfl") != "dfl":
        named.pop("loss.dfl_bins", None)
    return named


def _classes_of(note: dict[str, Any]) -> tuple[tuple[int, str], ...] | None:
    """The classes stored in a file of this program; None if missing or damaged."""
    try:
        return tuple((int(i), str(name)) for i, name in note[CLASSES])
    except (KeyError, TypeError, ValueError):
        return None


def _pixel_scale_of(note: dict[str, Any]) -> tuple[float, float] | None:
    """The scale stored in a file of this program; None if missing or damaged."""
    try:
        low, high = map(float, note[PIXEL_SCALE])
    except (KeyError, TypeError, ValueError):
        return None
    return low, high


def _checked(fields: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """``fields`` from a file; `UserError` for values that are not valid in a config."""
    config = default_config()
    try:
        config.update_from_flattened_dict(fields)
        validate(config)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{path} stores an invalid config ({error}); export it again") from None
    return fields


def _complete_affine_norms(flat: dict[str, np.ndarray]) -> None:
    """Adds statistics to files without any: Detectron folded them into scale and bias.

    The mean is 0, and the variance makes ``rsqrt(variance + eps)`` equal 1 in float32 for the eps
    of `MSRA`. Detectron2's MSRA files contain statistics, which are kept.
    """
    if any(name.startswith("batch_stats/") for name in flat):
        return
    for name in [n for n in flat if n.endswith("/scale")]:
        statistics = name.replace("params/", "batch_stats/", 1).removesuffix("scale")
        flat.setdefault(statistics + "mean", np.zeros_like(flat[name]))
        var = np.full_like(flat[name], 1 - MSRA["model.norm_eps"])
        flat.setdefault(statistics + "var", var)


def _drop_neutral_biases(flat: dict[str, np.ndarray], path: str | Path) -> list[str]:
    """Drops the bias that Detectron2 has before a group norm in the heads; it must be 0."""
    dropped = []
    for name in [n for n in flat if re.fullmatch(r"params/\w+_head/conv\d+/bias", n)]:
        if name.replace("/conv", "/norm").replace("/bias", "/scale") in flat:
            if flat[name].any():
                raise UserError(
                    f"{path}: {name} is before a group norm and is not 0; this program has no bias "
                    "there, so set it to 0"
                )
            del flat[name]
            dropped.append(f"{name} (0)")
    return dropped
