"""Config values: read, validate, resolve and compare them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from retina_jax.config import generalized_focal
from retina_jax.config.augmentations import FIELDS_OF_PRESETS, PRESETS
from retina_jax.config.backbones import BACKBONES
from retina_jax.config.fields import BY_NAME, FIELDS, default_config
from retina_jax.config.recording import RecordingConfig
from retina_jax.config.shell import field_flag
from retina_jax.errors import UserError
from retina_jax.files import is_address

RESOLVED = "resolved"
"""Group of config.json with the derived values; not part of the config."""
FITTED = "fitted"
"""Group of `RESOLVED` with the fields that ``data.fit`` chose, by name."""
_STEP = 32  # pixels: the stride of C5; the sides of every input are multiples of it


def leaves(config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> dict:
    """Every field of a config, or of its JSON, as ``{"train.steps": 90000, …}``."""
    fields = {}
    for key, value in config.items():
        if not prefix and key == RESOLVED:
            continue
        if isinstance(value, (ml_collections.ConfigDict, dict)):
            fields |= leaves(value, f"{prefix}{key}.")
        else:
            fields[prefix + key] = value
    return fields


def fields_set(config: ml_collections.ConfigDict) -> frozenset[str]:
    """Names of the fields that an experiment, a flag or a config.json set, even to the default.

    For a config that does not come from `default_config`: the fields that differ from the default.
    """
    if isinstance(config, RecordingConfig):
        return frozenset(config.names_set())
    return frozenset(n for n, value in leaves(config).items() if value != BY_NAME[n].default)


def changed_config(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy of ``config`` with some fields set."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(dict(fields))
    return changed


def tuples(value: object) -> object:
    """``value`` with lists, as JSON stores them, turned into tuples."""
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def from_json(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config in a config.json; locked.

    Fields added since the file was written have their defaults, removed fields are dropped, fitted
    fields and those of an augmentation preset have their values, and ``data.dir`` is absolute.
    """
    config = default_config()
    resolved = content.get(RESOLVED, {})
    fields = leaves(content) | resolved.get(FITTED, {})
    fields |= {name: resolved[name] for name in FIELDS_OF_PRESETS if name in resolved}
    if folder := resolved.get("data.dir"):
        fields["data.dir"] = folder
    for name, value in fields.items():
        if name in BY_NAME:
            config.update_from_flattened_dict({name: tuples(value)})
    return config


def to_json(config: ml_collections.ConfigDict, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json: the fields as the user set them, and the derived values.

    Fields under ``resolved["fitted"]`` were not set by the user, so they have their defaults.
    """
    asked = config.copy_and_resolve_references()
    if fitted := resolved.get(FITTED):
        asked.update_from_flattened_dict({name: BY_NAME[name].default for name in fitted})
    return json.loads(json.dumps({**asked.to_dict(), RESOLVED: dict(resolved)}))


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Values derived from the fields; `resolve` computes them once, after the flags."""

    learning_rate: float
    """Peak, scaled to ``train.batch_size``."""
    anchors_per_place: int
    buckets: tuple[tuple[int, int], ...]
    """(height, width) of the inputs, pixels."""
    background_logits: int
    """Logits per anchor in addition to its classes: 1 with a softmax, else 0."""
    box_bins: int
    """``loss.dfl_bins`` if the box head predicts distributions; 0 if it predicts deltas."""
    data_dir: str
    """Absolute; "" for TFDS's default."""
    data_seed: int
    """Seed of image order and augmentation."""
    augmentation: Mapping[str, Any]
    """The augmentation fields, by name, after ``data.augmentation``."""

    @property
    def box_values(self) -> int:
        """Outputs of the box head per box: 4 deltas, or the logits of four distributions."""
        return 4 * (self.box_bins + 1)

    @property
    def softmax(self) -> bool:
        """Whether the classes are mutually exclusive."""
        return self.background_logits > 0

    def to_json(self) -> dict[str, Any]:
        """For config.json; a key that is a field name holds its resolved value."""
        return {
            "data.dir": self.data_dir,
            "data.buckets": self.buckets,
            **self.augmentation,
            "learning_rate": self.learning_rate,
            "anchors_per_place": self.anchors_per_place,
        }


def resolve(config: ml_collections.ConfigDict) -> Resolved:
    """The derived values; call it after the flags are applied."""
    optimizer, data = config.optimizer, config.data
    scale = 1.0
    if optimizer.learning_rate_batch:
        scale = config.train.batch_size / optimizer.learning_rate_batch
    return Resolved(
        learning_rate=optimizer.learning_rate * scale,
        anchors_per_place=len(config.anchors.octaves) * len(config.anchors.ratios),
        buckets=tuple(data.buckets)
        or derive_buckets(data.short_side, data.long_side, data.train_short_sides),
        background_logits=int(config.loss.classification == "softmax_focal"),
        box_bins=config.loss.dfl_bins if config.loss.box == "dfl" else 0,
        data_dir=absolute_folder(data.dir),
        data_seed=config.seed if data.seed < 0 else data.seed,
        augmentation=augmentation(config),
    )


def augmentation(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The augmentation fields, by name, with the values of the preset ``data.augmentation``.

    A field that an experiment or a flag sets keeps its value.
    """
    fields, kept = leaves(config), fields_set(config)
    preset = PRESETS.get(config.data.augmentation, {})
    return {
        name: fields[name] if name in kept else preset.get(name, fields[name])
        for name in FIELDS_OF_PRESETS
    }


def absolute_folder(folder: str) -> str:
    """The absolute path of a folder; "" and addresses are returned unchanged."""
    if not folder or is_address(folder):
        return folder
    return str(Path(folder).expanduser().absolute())


def derive_buckets(
    short_side: int, long_side: int, train_short_sides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Landscape and portrait, (height, width), for the largest sides that images are scaled to."""
    short = _up(max(short_side, *train_short_sides, 1))
    long = max(short, _up(long_side))
    return ((short, long), (long, short)) if long > short else ((short, short),)


def _up(side: int) -> int:
    return -(-int(side) // _STEP) * _STEP


def target_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The arguments of `ops.targets.assign_targets` in a config."""
    return {**config.matching, "coder_weights": config.coder.weights}


def coder_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The arguments of `ops.distribution.decode_outputs` in a config."""
    return {"bins": resolve(config).box_bins, **config.coder}


def placement_rule(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The arguments of `data.plan.place` in a config."""
    data = config.data
    return {
        "buckets": resolve(config).buckets,
        "short_side": data.short_side,
        "long_side": data.long_side,
        "rounding": data.rounding,
    }


def comparable(content: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config, of its leaves, or of a config.json of any version, as JSON.

    Resolved values replace the values as set, and missing fields have their defaults: if two
    results are equal, the configs make the same run.
    """
    if isinstance(content, ml_collections.ConfigDict):
        resolved = augmentation(content)
    else:
        resolved = content.get(RESOLVED, {})
    values = leaves(content) | resolved.get(FITTED, {})
    fields = {field.name: values.get(field.name, field.default) for field in FIELDS}
    if isinstance(fields["data.dir"], str):
        fields["data.dir"] = resolved.get("data.dir") or absolute_folder(fields["data.dir"])
    if fields["data.seed"] == fields["seed"]:
        fields["data.seed"] = -1
    if not fields["data.buckets"]:
        sides = (fields[f"data.{n}"] for n in ("short_side", "long_side", "train_short_sides"))
        fields["data.buckets"] = derive_buckets(*sides)
    fields |= {name: resolved[name] for name in FIELDS_OF_PRESETS if name in resolved}
    fields["data.augmentation"] = ""
    if fields["loss.box"] != "dfl":
        fields["loss.dfl_bins"] = BY_NAME["loss.dfl_bins"].default  # it has no effect
    return json.loads(json.dumps(fields))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields where two results of `comparable` differ, with both values; in `FIELDS` order."""
    return {
        field.name: (before[field.name], now[field.name])
        for field in FIELDS
        if before[field.name] != now[field.name]
    }


def _refuse(name: str, value: object, rule: str, fix: object) -> None:
    raise UserError(f"config.{name}={value!r} {rule}; set {field_flag(name, fix)}")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for an invalid config, with the field, its value and the fix."""
    values = leaves(config)
    if values.keys() != BY_NAME.keys():
        odd = sorted(values.keys() ^ BY_NAME.keys())[0]
        problem = "is missing" if odd in BY_NAME else "is not a config field"
        raise UserError(f"config.{odd} {problem}; start get_config() from default_config()")
    for field in FIELDS:
        value, allowed = values[field.name], field.allowed
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(field.name, value, "is not a finite number", field.default)
        if not allowed.holds(value):
            fix = field.default if allowed.fix is None else allowed.fix
            _refuse(field.name, value, allowed.rule, fix)
    _validate_relations(config)
    _validate_buckets(config.data.buckets)


def _validate_relations(config: ml_collections.ConfigDict) -> None:
    """Checks combinations of fields."""
    matching, data, model, loss = config.matching, config.data, config.model, config.loss
    if matching.background_iou > matching.foreground_iou:
        rule = f"must not exceed matching.foreground_iou={matching.foreground_iou}"
        fix = matching.foreground_iou
        _refuse("matching.background_iou", matching.background_iou, rule, fix)
    _validate_matching(matching)
    if data.long_side < data.short_side:
        rule = f"must not be below data.short_side={data.short_side}"
        _refuse("data.long_side", data.long_side, rule, data.short_side)
    if data.float_pixels and data.antialias:
        rule = "resizes with OpenCV, which cannot antialias, but data.antialias is True"
        _refuse("data.float_pixels", True, rule, False)
    if loss.classification == "focal_star" and not loss.gamma > 0:
        _refuse("loss.gamma", loss.gamma, "must be above 0 for focal_star", 2.0)
    if excluded := generalized_focal.conflict(config):
        _refuse(*excluded)
    if model.stride_in_1x1 and not BACKBONES[model.backbone].bottleneck:
        rule = f"needs bottlenecks, which {model.backbone} does not have"
        _refuse("model.stride_in_1x1", True, rule, False)
    patience, plateau = config.train.patience, config.optimizer.plateau_patience
    if config.optimizer.schedule == "plateau" and 0 < patience <= plateau:
        rule = (
            "would end training before the learning rate decays for the first time "
            f"(optimizer.plateau_patience={plateau})"
        )
        _refuse("train.patience", patience, rule, 3 * plateau)


def _validate_matching(matching: ml_collections.ConfigDict) -> None:
    """Refuses fields of the rule that is not in use, because they would change nothing."""
    unused = {
        "iou": ("atss_candidates",),
        "atss": ("foreground_iou", "low_quality"),
    }[matching.kind]
    reason = {
        "iou": "has no effect with matching.kind=iou, which considers every anchor",
        "atss": "has no effect with matching.kind=atss, which computes a threshold for each box",
    }[matching.kind]
    for name in unused:
        default = BY_NAME[f"matching.{name}"].default
        if matching[name] != default:
            _refuse(f"matching.{name}", matching[name], reason, default)


def _validate_buckets(buckets: tuple) -> None:
    well_formed = isinstance(buckets, tuple) and all(
        isinstance(b, tuple) and len(b) == 2 and all(isinstance(v, int) for v in b)
        for b in buckets
    )  # fmt: skip
    name = "data.buckets"
    if not well_formed:
        _refuse(name, buckets, "must be (height, width) pairs", ((800, 1344), (1344, 800)))
    for height, width in buckets:
        if height < _STEP or width < _STEP or height % _STEP or width % _STEP:
            fix = tuple((max(_STEP, _up(h)), max(_STEP, _up(w))) for h, w in buckets)
            _refuse(name, buckets, f"must be multiples of {_STEP} pixels", fix)
    if len(set(buckets)) != len(buckets):
        _refuse(name, buckets, "contains a bucket twice", tuple(dict.fromkeys(buckets)))
