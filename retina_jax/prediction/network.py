"""A trained network with all that prediction needs: config, classes, weights, pixel scale."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import runpy
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.config import resolve, validate
from retina_jax.data.deep import PixelScale
from retina_jax.errors import UserError
from retina_jax.evaluation.detect import make_detect
from retina_jax.files import on_disk, open_path
from retina_jax.interop.fit import fit
from retina_jax.interop.graft import graft
from retina_jax.interop.structure import class_outputs
from retina_jax.interop.weights import read_weights
from retina_jax.models import retinanet
from retina_jax.training.checkpoint import FOLDER, Chosen, restore_chosen
from retina_jax.training.step import variable_shapes
from retina_jax.training.workdir import (
    CONFIG,
    Classes,
    as_in_run,
    read_classes,
    read_config,
    read_pixel_scale,
    workdir_at,
)
from retina_jax.types import Batch, Detections

CHECKPOINTS = ("best", "latest")
Note = Callable[[str], None]
Detect = Callable[[Iterable[Batch]], Iterator[tuple[int, Detections]]]
"""Number in the stream and detections of each image, in order; see `evaluation.detect`."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Weights with their config and classes; `from_workdir` and `from_weights` read one."""

    config: ml_collections.ConfigDict
    """Validated."""
    classes: Classes
    variables: Any
    """NumPy arrays, in the structure of the network of ``config``."""
    pixel_scale: PixelScale | None
    """The 16-bit or float values that training mapped to 0 and 255; None: it had no such images."""
    source: str
    """Where the weights come from, for messages."""
    checkpoint: Chosen | None = None
    """The checkpoint of the weights; None for a weight file."""

    @functools.cached_property
    def model(self) -> retinanet.RetinaNet:
        """The network without its weights."""
        return retinanet.build(self.config, len(self.classes.names))

    def make_detect(self, config: ml_collections.ConfigDict) -> Detect:
        """Puts the network on as many devices of this host as can share a batch equally.

        ``config`` is that of this network, possibly with other fields of ``eval``.
        """
        here, size = len(parallel.Devices.local()), config.eval.batch_size
        shared = max(n for n in range(1, here + 1) if size % n == 0)
        devices = parallel.Devices.local(shared)
        detect = make_detect(self.model, config, devices)
        return functools.partial(detect, devices.replicate(self.variables))

    def digest(self) -> str:
        """Identifies the weights: 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for path, value in jax.tree_util.tree_leaves_with_path(self.variables):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(value))
        return digest.hexdigest()


def from_workdir(
    workdir: str | Path,
    checkpoint: str | int = "best",
    note: Note = lambda line: None,
    config: ml_collections.ConfigDict | None = None,
) -> Network:
    """The network of a run. Never reads its data set.

    Args:
      checkpoint: "best" by AP (the latest if none was evaluated), "latest", or a step.
      note: called with each warning.
      config: used instead of the run's own config, for example with flags applied.

    Raises `UserError` for a folder without a run or a checkpoint, or if the network differs from
    that of ``config``.
    """
    if checkpoint not in CHECKPOINTS and not isinstance(checkpoint, int):
        raise UserError(f"checkpoint={checkpoint!r} must be {', '.join(CHECKPOINTS)} or a step")
    folder = workdir_at(workdir)
    if not folder.is_dir():
        raise UserError(f"--workdir={workdir} is not a folder; set it to the workdir of a run")
    if not (folder / CONFIG).exists() and not (folder / FOLDER).is_dir():
        raise UserError(
            f"--workdir={workdir} is not a workdir: it has no {CONFIG}; set it to the workdir of "
            "a run"
        )
    config = read_config(folder) if config is None else as_in_run(config, folder)
    validate(config)
    chosen, weights = restore_chosen(workdir, checkpoint)
    source, classes = str(chosen), read_classes(folder)
    if classes is None:  # a run of an earlier version, or imported weights
        classes = _numbered(_count_classes(config, weights, source), source, note)
    variables = _fitted(config, len(classes.names), weights, source)
    return Network(config, classes, variables, read_pixel_scale(folder), source, chosen)


def from_weights(
    path: str | Path,
    config: ml_collections.ConfigDict | str | Path,
    class_names: Sequence[str] | None = None,
    note: Note = lambda line: None,
) -> Network:
    """The network in a weight file of this program, torchvision or Detectron2.

    Args:
      path: a .safetensors, .pth or .pkl file.
      config: describes the network and its input: an experiment's config, the path of an
        experiment (a Python file, which is executed), or the workdir of a run.
      class_names: names of the classes, by label; None: those in the file, else numbers.
      note: called with each warning, such as fields that differ from those of training.

    Raises `UserError` for a file that cannot be read, or that is not a detector of ``config``.
    """
    config = _config_of(config)
    validate(config)
    path = open_path(path, "the weights")
    with on_disk(path) as local:
        imported = read_weights(local)
    if class_outputs(imported.tree) is None:
        raise UserError(
            f"{path} holds only a backbone, which cannot detect objects; use the "
            "weights of a detector"
        )
    count = _count_classes(config, imported.tree, str(path))
    if class_names is not None:
        if len(class_names) != count:
            raise UserError(
                f"class_names has {len(class_names)} names, but {path} has {count} classes; give "
                "one name per class"
            )
        ids = tuple(i for i, _ in imported.classes) if imported.classes else tuple(range(count))
        classes = Classes(tuple(class_names), ids)
    elif imported.classes is not None:
        ids, names = zip(*imported.classes, strict=True)
        classes = Classes(tuple(names), tuple(ids))
    else:
        classes = _numbered(count, str(path), note)
    shapes = variable_shapes(retinanet.build(config, len(classes.names)))
    fitted = fit(imported, shapes, config, classes.ids, str(path))
    for line in (*fitted.notes, *fitted.differs):
        note(line)
    if fitted.fresh:
        advice = fitted.box_head or "use the weights of a detector"
        raise UserError(f"{path} lacks {', '.join(fitted.fresh)}; {advice}")
    return Network(config, classes, fitted.tree, imported.pixel_scale, str(path))


def _config_of(config: ml_collections.ConfigDict | str | Path) -> ml_collections.ConfigDict:
    if isinstance(config, ml_collections.ConfigDict):
        return config
    path = open_path(config, "config")
    if path.is_dir():
        return read_config(path)
    try:
        return runpy.run_path(str(path))["get_config"]()
    except (OSError, KeyError, SyntaxError) as error:
        raise UserError(
            f"config={config} is neither an experiment, a Python file with get_config(), nor the "
            f"workdir of a run ({type(error).__name__}: {error})"
        ) from None


def _count_classes(config: ml_collections.ConfigDict, tree: Any, source: str) -> int:
    """Number of classes that the class layer of ``tree`` scores."""
    resolved = resolve(config)
    outputs = class_outputs(tree) or 0
    if not outputs or outputs % resolved.anchors_per_place:
        raise UserError(
            f"{source} predicts {outputs} class scores per cell, not a multiple of the "
            f"{resolved.anchors_per_place} anchors per cell; set anchors.octaves and "
            "anchors.ratios of the config to those of the weights"
        )
    return outputs // resolved.anchors_per_place - resolved.background_logits


def _numbered(count: int, source: str, note: Note) -> Classes:
    """Classes named by their numbers, because the weights state no names."""
    note(
        f"{source} does not name its {count} classes; they will be called class 0, class 1 and so "
        "on"
    )
    return Classes(tuple(f"class {i}" for i in range(count)), tuple(range(count)))


def _fitted(config: ml_collections.ConfigDict, classes: int, weights: Any, source: str) -> Any:
    """``weights`` in the network's structure; `UserError` if they belong to a different network."""
    shapes = variable_shapes(retinanet.build(config, classes))
    variables, unmatched = graft(shapes, weights, source)
    if unmatched:
        raise UserError(
            f"{source} has a different number of classes from the {classes} in its {CONFIG}; "
            f"restore {CONFIG}"
        )
    return variables
