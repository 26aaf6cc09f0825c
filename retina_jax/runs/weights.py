"""Imports weights into workdirs and exports them, in any format that `interop` supports."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from retina_jax.config import leaves, resolve
from retina_jax.data.data_set import data_dir, find_data_set, open_split
from retina_jax.errors import UserError
from retina_jax.files import on_disk, open_path
from retina_jax.interop.catalogue import suggestion
from retina_jax.interop.export import check_expressible, export_weights, how_to_load, note_of
from retina_jax.interop.fetch import weight_path
from retina_jax.interop.files import SUFFIXES, write_arrays
from retina_jax.interop.fit import COCO_IDS, COCO_SLOTS
from retina_jax.interop.start import start_from
from retina_jax.interop.structure import class_outputs, flatten
from retina_jax.interop.weights import Imported, read_weights, weights_of_run
from retina_jax.models import retinanet
from retina_jax.progress import Reporter
from retina_jax.runs.fitting import Fitted, fitted_to_data
from retina_jax.training import averaging
from retina_jax.training.checkpoint import FOLDER, Checkpoints, weights_of
from retina_jax.training.optimizer import build_optimizer
from retina_jax.training.step import init_state
from retina_jax.training.workdir import (
    CONFIG,
    Classes,
    open_workdir,
    read_classes,
    read_config,
    read_pixel_scale,
    write_config,
)
from retina_jax.wording import counted


def read_source(
    source: str, field: str, report: Reporter | None = None, trust: bool = False
) -> Imported:
    """The weights with a name, in a file of any supported system, or in a workdir.

    Args:
      source: a name in `interop.catalogue`, whose file is fetched unless it is in the cache; or a
        path.
      trust: read a file by name even if no hash is published to verify it.

    Raises `UserError`, naming ``field``, if ``source`` is none of these or cannot be read, and
    `RunError` if the network fails.
    """
    path = weight_path(source, field, report, trust)
    if (path / FOLDER).is_dir():
        config = path / CONFIG
        fields = leaves(json.loads(config.read_text())) if config.exists() else {}
        classes = read_classes(path) if config.exists() else None
        return weights_of_run(weights_of(path, field), fields, classes and classes.pairs())
    if path.is_dir() or path.suffix not in SUFFIXES:
        raise UserError(
            f"{field}={source!r} is neither a workdir with checkpoints nor a weight file "
            f"({', '.join(SUFFIXES)}); set it to the workdir of a run, or to a file or a name of "
            f"weights of torchvision, Detectron2 or this program; {suggestion(source)}"
        )
    try:
        with on_disk(path) as copy:
            return read_weights(copy)
    except FileNotFoundError as error:
        raise UserError(f"{field}={source!r} does not exist ({error}); set it to a file") from None


def import_weights(
    config: ml_collections.ConfigDict,
    weights: str,
    workdir: str | Path,
    classes: int = 0,
    report: Reporter | None = None,
    trust: bool = False,
) -> Path:
    """Creates a workdir with a checkpoint of step 0; returns its folder.

    Args:
      weights: a name, a file, or the workdir of another run.
      classes: number of classes; 0: that of the weights, or of the data set for a backbone.
      trust: as for `read_source`.

    Raises `UserError` with every parameter that does not fit.
    """
    report = report or Reporter()
    if classes < 0:
        raise UserError(f"--classes={classes} must be 1 or more; set --classes=80")
    folder = open_path(workdir, "--out")
    if (folder / FOLDER).exists():
        raise UserError(f"--out={folder} already has checkpoints; use another folder")
    fit = _fitted(config, report)
    config = fit.config
    imported = read_source(weights, "--weights", report, trust)
    report.say(f"{imported.system}: {len(flatten(imported.tree))} arrays in {weights}")
    if imported.ignored:
        report.say(f"ignored arrays (not weights of the network): {_in_short(imported.ignored)}")
    category_ids = _category_ids_of_data(config)
    count, category_ids = _count_classes(imported, config, category_ids, weights, classes)
    state = init_state(retinanet.build(config, count), build_optimizer(config), config)
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    named = f"--weights={weights}"
    # no class names: the network keeps the classes of the weights, whatever the data set has
    tree = start_from(imported, fresh, config, category_ids, (), named, report.say, report.note)
    folder, _ = open_workdir(workdir, config)
    state = averaging.with_weights(state, tree)
    checkpoints = Checkpoints(folder)
    checkpoints.save(state)
    checkpoints.wait()
    checkpoints.close()
    pairs = imported.classes if imported.classes and len(imported.classes) == count else None
    stored = pairs and Classes(tuple(n for _, n in pairs), tuple(i for i, _ in pairs))
    write_config(folder, config, (stored.to_json() if stored else {}) | fit.facts())
    report.say(f"{config.model.backbone}-FPN with {counted(count, 'class')}, step 0, in {folder}")
    return folder


def _fitted(config: ml_collections.ConfigDict, report: Reporter) -> Fitted:
    """The config fitted to its data set, if it asks for that and the data set exists."""
    try:
        fit = fitted_to_data(config, report)
    except UserError as error:
        report.note(f"data.fit: {error}; the workdir has the values before the fit")
        return Fitted(config)
    fit.say(report)
    return fit


def _category_ids_of_data(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Category ids of the classes of the config's data set; () if it does not exist."""
    try:
        directory = find_data_set(data_dir(config.data.dir), config.data.name)
        return open_split(directory, config.data.eval_split, config.data.labels).category_ids
    except UserError:
        return ()


def _count_classes(
    imported: Imported,
    config: ml_collections.ConfigDict,
    category_ids: tuple[int, ...],
    weights: str,
    classes: int,
) -> tuple[int, tuple[int, ...]]:
    """Number of classes of the network, and their category ids."""
    outputs = class_outputs(imported.tree)
    if outputs is None:
        count = classes or len(category_ids)
        if not count:
            raise UserError(
                f"--weights={weights} is a backbone without classes, and data set config.data.name="
                f"{config.data.name!r} does not exist; set the number of classes, for example "
                "--classes=80"
            )
        return count, category_ids
    resolved = resolve(config)
    if outputs % resolved.anchors_per_place:
        raise UserError(
            f"--weights={weights} predicts {outputs} class scores per cell, not a multiple of the "
            f"{resolved.anchors_per_place} anchors per cell; set --config.anchors.octaves and "
            "--config.anchors.ratios to those of the weights"
        )
    own = outputs // resolved.anchors_per_place - resolved.background_logits
    if own == COCO_SLOTS and classes == len(COCO_IDS):
        return len(COCO_IDS), COCO_IDS
    if own == COCO_SLOTS and not classes and set(category_ids) == set(COCO_IDS):
        return len(COCO_IDS), category_ids
    return classes or own, category_ids


def _in_short(names: Sequence[str]) -> str:
    """Counts of names by their last part."""
    counts = collections.Counter(name.rsplit(".", 1)[-1] for name in names)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def export_run(workdir: str | Path, system: str, out: Path) -> tuple[int, list[str]]:
    """Writes the weights of a run in the format of ``system``.

    Returns the number of arrays, and the code (or config lines) that loads them there. Raises
    `UserError` for a network that the system cannot represent.
    """
    workdir = open_path(workdir, "--workdir")
    config = read_config(workdir)
    check_expressible(config, system)
    tree = weights_of(workdir)
    arrays = export_weights(tree, config, system)
    classes = read_classes(workdir)
    write_arrays(
        out, arrays, note_of(config, system, classes and classes.pairs(), read_pixel_scale(workdir))
    )
    return len(arrays), how_to_load(tree, config, system, str(out))
