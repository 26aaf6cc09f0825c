"""The values of a config: read, validated, resolved, compared."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config.fields import BY_NAME, FIELDS, default_config
from retina_jax.config.shell import field_flag
from retina_jax.errors import UserError

RESOLVED = "resolved"
"""Group of config.json that holds what follows from the fields; it is no part of the config."""
_STEP = 32  # pixels: the stride of C5; every side of an input is a multiple


def leaves(config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> dict:
    """Every field of a config, or of its JSON, as ``{"train.steps": 90000, …}``."""
    found = {}
    for key, value in config.items():
        if not prefix and key == RESOLVED:
            continue
        if isinstance(value, (ml_collections.ConfigDict, dict)):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def tuples(value: object) -> object:
    """JSON has lists where a config has tuples."""
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def from_json(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config of a config.json; locked.

    A field that has come since has its default, one that is gone is left out, and a folder of data
    is the absolute one.
    """
    config = default_config()
    given = leaves(content)
    if folder := content.get(RESOLVED, {}).get("data.dir"):
        given["data.dir"] = folder
    for name, value in given.items():
        if name in BY_NAME:
            config.update_from_flattened_dict({name: tuples(value)})
    return config


def to_json(config: ml_collections.ConfigDict, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds: the fields as they were asked for, and what follows from them."""
    return json.loads(json.dumps({**config.to_dict(), RESOLVED: dict(resolved)}))


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What follows from the fields; `resolve` computes it once, after the flags."""

    learning_rate: float
    """Peak, for the batch at hand."""
    anchors_per_place: int
    buckets: tuple[tuple[int, int], ...]
    """(height, width) of the inputs."""
    background_logits: int
    """Logits of an anchor beside its classes: 1 with a softmax, else 0."""
    data_dir: str
    """Absolute; "" for TFDS's own default."""

    @property
    def softmax(self) -> bool:
        """Whether classes exclude each other."""
        return self.background_logits > 0

    def to_json(self) -> dict[str, Any]:
        """For config.json; a key that names a field stands for its resolved value."""
        return {
            "data.dir": self.data_dir,
            "data.buckets": self.buckets,
            "learning_rate": self.learning_rate,
            "anchors_per_place": self.anchors_per_place,
        }


def resolve(config: ml_collections.ConfigDict) -> Resolved:
    """Derived values; call it after the flags are in."""
    optimizer, data = config.optimizer, config.data
    scale = 1.0
    if optimizer.learning_rate_batch:
        scale = config.train.batch_size / optimizer.learning_rate_batch
    return Resolved(
        learning_rate=optimizer.learning_rate * scale,
        anchors_per_place=len(config.anchors.octaves) * len(config.anchors.ratios),
        buckets=tuple(data.buckets)
        or following_buckets(data.short_side, data.long_side, data.train_short_sides),
        background_logits=int(config.loss.classification == "softmax_focal"),
        data_dir=absolute_folder(data.dir),
    )


def absolute_folder(folder: str) -> str:
    """A folder whatever the working directory; "" stays."""
    return str(Path(folder).expanduser().absolute()) if folder else ""


def following_buckets(
    short_side: int, long_side: int, train_short_sides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Landscape and portrait, (height, width), at the largest sides that images are scaled to."""
    short = _up(max(short_side, *train_short_sides, 1))
    long = max(short, _up(long_side))
    return ((short, long), (long, short)) if long > short else ((short, short),)


def _up(side: int) -> int:
    return -(-int(side) // _STEP) * _STEP


def target_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `ops.targets.assign_targets` takes of a config."""
    return {**config.matching, "coder_weights": config.coder.weights}


def placement_rule(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `data.plan.place` takes of a config."""
    data = config.data
    return {
        "buckets": resolve(config).buckets,
        "short_side": data.short_side,
        "long_side": data.long_side,
        "rounding": data.rounding,
    }


def comparable(content: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config, of its leaves, or of a config.json of any version, as JSON.

    Resolved values stand for those that were asked for, and a field that has come since has its
    default: two that compare equal make the same run.
    """
    given = leaves(content)
    fields = {field.name: given.get(field.name, field.default) for field in FIELDS}
    resolved = {} if isinstance(content, ml_collections.ConfigDict) else content.get(RESOLVED, {})
    if isinstance(fields["data.dir"], str):
        fields["data.dir"] = resolved.get("data.dir") or absolute_folder(fields["data.dir"])
    if not fields["data.buckets"]:
        sides = (fields[f"data.{n}"] for n in ("short_side", "long_side", "train_short_sides"))
        fields["data.buckets"] = following_buckets(*sides)
    return json.loads(json.dumps(fields))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field to its two values where two results of `comparable` differ; in the order of rows."""
    return {
        field.name: (before[field.name], now[field.name])
        for field in FIELDS
        if before[field.name] != now[field.name]
    }


def _refuse(name: str, value: object, rule: str, fix: object) -> None:
    raise UserError(f"config.{name}={value!r} {rule}; set {field_flag(name, fix)}")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError`, naming the field, its value and the fix, for what cannot work."""
    given = leaves(config)
    if given.keys() != BY_NAME.keys():
        odd = sorted(given.keys() ^ BY_NAME.keys())[0]
        raise UserError(f"config.{odd} is not as in default_config(); build experiments from it")
    for field in FIELDS:
        value, allowed = given[field.name], field.allowed
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(field.name, value, "is not a finite number", field.default)
        if not allowed.holds(value):
            fix = field.default if allowed.fix is None else allowed.fix
            _refuse(field.name, value, allowed.rule, fix)
    _validate_relations(config)
    _validate_buckets(config.data.buckets)


def _validate_relations(config: ml_collections.ConfigDict) -> None:
    """Fields that exclude each other."""
    matching, data, model, loss = config.matching, config.data, config.model, config.loss
    if matching.background_iou > matching.foreground_iou:
        rule = f"must not exceed matching.foreground_iou={matching.foreground_iou}"
        fix = matching.foreground_iou
        _refuse("matching.background_iou", matching.background_iou, rule, fix)
    if data.long_side < data.short_side:
        rule = f"must not be below data.short_side={data.short_side}"
        _refuse("data.long_side", data.long_side, rule, data.short_side)
    if data.float_pixels and data.antialias:
        rule = "resizes by OpenCV, which does not antialias, and data.antialias is True"
        _refuse("data.float_pixels", True, rule, False)
    if loss.classification == "focal_star" and not loss.gamma > 0:
        _refuse("loss.gamma", loss.gamma, "must be above 0 for focal_star", 2.0)
    if model.stride_in_1x1 and model.backbone in ("resnet18", "resnet34"):
        rule = f"has no 1x1 to halve in: {model.backbone} has basic blocks"
        _refuse("model.stride_in_1x1", True, rule, False)


def _validate_buckets(buckets: tuple) -> None:
    well_formed = isinstance(buckets, tuple) and all(
        isinstance(b, tuple) and len(b) == 2 and all(isinstance(v, int) for v in b)
        for b in buckets
    )  # fmt: skip
    name = "data.buckets"
    if not well_formed:
        _refuse(name, buckets, "must be pairs (height, width)", ((800, 1344), (1344, 800)))
    for height, width in buckets:
        if height < _STEP or width < _STEP or height % _STEP or width % _STEP:
            fix = tuple((max(_STEP, _up(h)), max(_STEP, _up(w))) for h, w in buckets)
            _refuse(name, buckets, f"must be multiples of {_STEP} pixels", fix)
    if len(set(buckets)) != len(buckets):
        _refuse(name, buckets, "names a bucket twice", tuple(dict.fromkeys(buckets)))


def notices(config: ml_collections.ConfigDict) -> list[str]:
    """What is allowed and yet worth a line before step 0."""
    found = []
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.warmup_steps >= steps:
        found.append(
            f"optimizer.warmup_steps={optimizer.warmup_steps} does not end within "
            f"train.steps={steps}: the learning rate never reaches its peak"
        )
    if optimizer.schedule == "step" and not any(at < steps for at in optimizer.decay_at):
        found.append(
            f"optimizer.decay_at={tuple(optimizer.decay_at)} lies beyond train.steps={steps}: "
            "the learning rate never decays"
        )
    if config.model.norm == "frozen" and not config.model.init_from:
        found.append(
            "model.norm=frozen without model.init_from: random weights are never normalised and "
            "learn badly; set --config.model.norm=batch to train from scratch"
        )
    if config.model.frozen_stages and not config.model.init_from:
        found.append(
            f"model.frozen_stages={config.model.frozen_stages} without model.init_from: random "
            "weights stay random there; set --config.model.frozen_stages=0 to train from scratch"
        )
    return found
