"""Make a workdir of weights that another program (or a run of this one) has trained.

usage: python scripts/import_weights.py --config=experiments/coco.py --weights=FILE --workdir=DIR
           [--classes=N] [--config.path.to.field=value ...]

FILE is .safetensors, .pth (needs torch) or .pkl with the names of torchvision (ResNet, RetinaNet),
Detectron2 (ResNet, RetinaNet, Caffe2 ResNet) or this program; or the workdir of another run. The
config must describe the network that the weights are of; what does not fit is listed by name. The
number of classes is the weights' own; of a backbone alone it is the data set's, or --classes. The
classes of torchvision's COCO models (91 slots) become COCO's 80 where the data set has these ids,
or with --classes=80.

Afterwards DIR holds a checkpoint of step 0 and config.json:
    python -m retina_jax.main --config=... --workdir=DIR [--mode=evaluate]
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from retina_jax import command_line
from retina_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment.")
_WEIGHTS = flags.DEFINE_string("weights", None, "File, or workdir of a run.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to make.")
_CLASSES = flags.DEFINE_integer("classes", 0, "Classes of the network; 0: the weights'.")


def category_ids_of_data(config) -> tuple[int, ...]:
    """COCO's ids of the classes of the config's data set; () where it is not there."""
    from retina_jax.data.sources import data_dir, find_data_set, open_split

    try:
        directory = find_data_set(data_dir(config.data.dir), config.data.name)
        return open_split(directory, config.data.eval_split, config.data.labels).category_ids
    except UserError:
        return ()


def count_classes(imported, config, category_ids: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Classes of the network to make, and the category ids that they stand for."""
    from retina_jax.config import resolve
    from retina_jax.interop.fit import COCO_IDS, COCO_SLOTS
    from retina_jax.interop.structure import class_outputs

    outputs = class_outputs(imported.tree)
    if outputs is None:
        classes = _CLASSES.value or len(category_ids)
        if not classes:
            raise UserError(
                f"--weights={_WEIGHTS.value} is a backbone alone and config.data.name="
                f"{config.data.name!r} is not there to count classes; set --classes=80 for example"
            )
        return classes, category_ids
    per_place = resolve(config).anchors_per_place
    if outputs % per_place:
        raise UserError(
            f"--weights={_WEIGHTS.value} gives {outputs} class scores a place, no multiple of the "
            f"{per_place} anchors of config.anchors.octaves and config.anchors.ratios"
        )
    own = outputs // per_place - (config.loss.classification == "softmax_focal")
    if own == COCO_SLOTS and _CLASSES.value == len(COCO_IDS):
        return len(COCO_IDS), COCO_IDS
    if own == COCO_SLOTS and not _CLASSES.value and set(category_ids) == set(COCO_IDS):
        return len(COCO_IDS), category_ids
    return _CLASSES.value or own, category_ids


def import_weights(config, console) -> Path:
    """Writes the workdir; `UserError` for what does not fit, after listing all of it."""
    from retina_jax.checkpoint import FOLDER, Checkpoints, read_source
    from retina_jax.interop.fit import fit
    from retina_jax.interop.graft import MisfitError
    from retina_jax.interop.structure import flatten
    from retina_jax.models import retinanet
    from retina_jax.optimizer import build_optimizer
    from retina_jax.train_step import init_state
    from retina_jax.workdir import open_workdir, write_config

    folder = Path(_WORKDIR.value).expanduser()
    if (folder / FOLDER).exists():
        raise UserError(f"--workdir={folder} has checkpoints already; give another folder")
    imported = read_source(_WEIGHTS.value, "--weights")
    console.print(f"{imported.system}: {len(flatten(imported.tree))} arrays in {_WEIGHTS.value}")
    if imported.ignored:
        console.print(f"no weights of the network: {_in_short(imported.ignored)}")
    classes, category_ids = count_classes(imported, config, category_ids_of_data(config))
    state = init_state(retinanet.build(config, classes), build_optimizer(config), config)
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    try:
        fitted = fit(imported, fresh, config, category_ids, f"--weights={_WEIGHTS.value}")
    except MisfitError as error:
        for line in error.wrong:
            console.print(f"  {line}", markup=False)
        raise
    for line in fitted.report():
        console.print(line)
    folder, _ = open_workdir(_WORKDIR.value, config)
    state = state.replace(params=fitted.tree["params"], batch_stats=fitted.tree["batch_stats"])
    checkpoints = Checkpoints(folder)
    checkpoints.save(state)
    checkpoints.wait()
    checkpoints.close()
    write_config(folder, config)
    console.print(f"{config.model.backbone}-FPN of {classes} classes in {folder}, step 0")
    return folder


def _in_short(names: tuple[str, ...]) -> str:
    """Names by their last part, with how many there are of each."""
    import collections

    counts = collections.Counter(name.rsplit(".", 1)[-1] for name in names)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def main(argv: list[str]) -> int:
    if command_line.wants_help(argv):
        print(__doc__)
        return 0
    try:
        required = {"weights": _WEIGHTS, "workdir": _WORKDIR}
        config = command_line.parse(argv, _CONFIG, required)
        if _CLASSES.value < 0:
            raise UserError(f"--classes={_CLASSES.value} must be 1 or more")
        from absl import logging
        from rich.console import Console

        logging.set_verbosity(logging.ERROR)
        import_weights(config, Console(stderr=True, highlight=False, soft_wrap=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
