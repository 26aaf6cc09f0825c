"""Make a workdir of weights that another program (or a run of this one) has trained.

usage: retina-jax import-weights --config=experiments/coco.py --weights=FILE --out=DIR
           [--classes=N] [--config.path.to.field=value ...]

FILE is .safetensors, .pth (needs torch) or .pkl with the names of torchvision (ResNet, RetinaNet),
Detectron2 (ResNet, RetinaNet, Caffe2 ResNet) or this program; or the workdir of another run. The
config must describe the network that the weights are of; what does not fit is listed by name. The
number of classes is the weights' own; for a backbone alone it is the data set's, or --classes. The
classes of torchvision's COCO models (91 slots) become COCO's 80 where the data set has these ids,
or with --classes=80.

Afterwards DIR holds a checkpoint of step 0 and config.json: evaluate it, or train on from it, with
--workdir=DIR.
"""

from __future__ import annotations

from retina_jax.config.flags import Flag, parse

FLAGS = (
    Flag("weights", "file, or workdir of a run", example="resnet50.pth"),
    Flag("out", "workdir to make (also --workdir)", example="runs/theirs", also="workdir"),
    Flag("classes", "classes of the network; 0: the weights'", 0),
)


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, FLAGS)
    if parsed is None:
        return 0
    from retina_jax.progress import Reporter
    from retina_jax.runs.weights import import_weights

    flags = parsed.flags
    import_weights(parsed.config, flags.weights, flags.out, flags.classes, Reporter.on_stderr())
    return 0
