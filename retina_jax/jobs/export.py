"""Write a trained detector as files that run without this program: StableHLO or ONNX.

usage: retina-jax export --workdir=DIR --out=DIR [--format=onnx] [--bucket=800x1344]
           [--batch-size=N] [--config.path.to.field=value ...]

Exports the best checkpoint by AP, or the latest if none was evaluated. Writes one file per bucket
(input shape), a model card (model_card.md, model.json) and load.py, which runs the model with only
NumPy and JAX with flatbuffers (stablehlo) or onnxruntime (onnx). Each file takes padded images and
their sizes and returns detections; it includes normalisation, decoding and NMS. It is compared with
the run's own predictions, on images of the run's data set if it is available, else on synthetic
images. StableHLO runs on CPUs, NVIDIA GPUs and TPUs.
"""

from __future__ import annotations

from retina_jax.config.flags import Flag, parse
from retina_jax.jobs import config_of_run
from retina_jax.placement import check_alone

FLAGS = (
    Flag("workdir", "folder of the run", example="runs/first"),
    Flag("out", "folder to write", example="exported"),
    Flag("format", "stablehlo, or onnx (needs the extra: pip install 'retina_jax[onnx]')",
         "stablehlo"),
    Flag("bucket", "input shape to export, HxW; default: every bucket of the config"),
    Flag("batch_size", "images per call; 0: any number", 0, least=0),
)  # fmt: skip


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, FLAGS, config_of_run=config_of_run)
    if parsed is None:
        return 0
    check_alone("export")
    from retina_jax.exporting.export import export
    from retina_jax.program_cache import keep_compiled_programs
    from retina_jax.progress import Reporter

    if parsed.config.train.compilation_cache:
        keep_compiled_programs()
    flags = parsed.flags
    paths = export(
        parsed.config,
        flags.workdir,
        flags.out,
        flags.format,
        flags.bucket or "",
        flags.batch_size,
        Reporter.on_stderr(),
    )
    print("\n".join(map(str, paths)))
    return 0
