"""Create a workdir from the weights of another program or another run.

usage: retina-jax import-weights --config=experiments/coco.py --weights=NAME_OR_FILE --out=DIR
           [--classes=N] [--trust] [--config.path.to.field=value ...]
       retina-jax import-weights --list

--list prints the names of published weights, such as torchvision:resnet50, with their size, hash
and licence. The file of a name is fetched once, to $RETINA_JAX_CACHE/weights (default:
~/.cache/retina_jax/weights), and verified.

A file is a .safetensors, .pth or .pkl file from torchvision (ResNet, RetinaNet), Detectron2
(ResNet, RetinaNet, Caffe2 ResNet) or this program, or the workdir of another run. The config must
describe the network that the weights belong to; parameters that do not match are listed by name. A
detector keeps its number of classes; for a backbone, the number comes from the data set or
--classes. The 91 outputs of torchvision's COCO models are reduced to COCO's 80 classes
if the data set has COCO's category ids, or with --classes=80.

DIR then contains config.json and a checkpoint of step 0. To evaluate or train from it, pass
--workdir=DIR.
"""

from __future__ import annotations

from retina_jax.config.flags import TRUST, Flag, parse

FLAGS = (
    Flag("weights", "name, file, or workdir of a run", example="torchvision:resnet50"),
    Flag("out", "workdir to create (--workdir also works)", example="runs/theirs", also="workdir"),
    Flag("classes", "number of classes; 0: taken from the weights or the data set", 0),
    TRUST,
)


def main(argv: list[str]) -> int:
    if "--list" in argv or "-list" in argv:
        _print_list()
        return 0
    parsed = parse(argv, __doc__, FLAGS)
    if parsed is None:
        return 0
    from retina_jax.progress import Reporter
    from retina_jax.runs.weights import import_weights

    flags = parsed.flags
    report = Reporter.on_stderr()
    import_weights(parsed.config, flags.weights, flags.out, flags.classes, report, flags.trust)
    return 0


def _print_list() -> None:
    from retina_jax.interop.catalogue import PIXELS, table
    from retina_jax.interop.fetch import weights_folder

    print("\n".join(table()))
    print("\npixels:")
    for name, meaning in PIXELS.items():
        print(f"  {name}: {meaning}")
    print(f"\nFiles are kept in {weights_folder()}.")
