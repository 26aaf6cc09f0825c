"""Exports a run: one program per bucket, a model card, and `load.py`."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from retina_jax import parallel
from retina_jax.config import resolve
from retina_jax.errors import UserError, check_local
from retina_jax.exporting import card, program
from retina_jax.exporting.agreement import Checker
from retina_jax.files import write_json, write_text
from retina_jax.prediction import load
from retina_jax.prediction.network import from_workdir
from retina_jax.progress import Reporter
from retina_jax.training.workdir import as_in_run, workdir_at

FORMATS = tuple(card.FORMATS)
FOR_PEOPLE = "model_card.md"


def export(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    out: str | Path,
    kind: str = "stablehlo",
    bucket: str = "",
    batch_size: int = 0,
    report: Reporter | None = None,
) -> list[Path]:
    """Writes the best checkpoint of a run to ``out``; returns the files of its programs.

    Args:
      kind: one of `FORMATS`.
      bucket: "HxW"; "": all buckets of the config.
      batch_size: images per call; 0: any number.

    Each program is compared with the run's own predictions before the card is written. Raises
    `UserError` for a run that cannot be exported, and `RunError` for a program that differs.
    """
    report = report or Reporter()
    config = as_in_run(config, workdir_at(workdir))
    buckets = _buckets(config, bucket)
    if kind not in FORMATS:
        raise UserError(f"--format={kind} must be one of {', '.join(FORMATS)}")
    check_local(str(out), "--out")
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; set it to a new folder")
    opset = 0
    if kind == "onnx":
        config = _in_float32(config, report)
        check_onnx("--format=onnx")
        from retina_jax.exporting import onnx_model

        write, load_program, opset = onnx_model.write, onnx_model.load, onnx_model.OPSET
    else:
        write, load_program = program.write, program.load
    network = from_workdir(workdir, note=report.note, config=config)
    report.say(f"exporting the {network.source} to {out}")
    checker = Checker(network)
    files, paths = [], []
    with report.progress("exporting", 2 * len(buckets)) as bar:
        for height, width in buckets:
            path = out / f"model-{height}x{width}.{kind}"
            with parallel.explain_out_of_memory("export one bucket at a time with --bucket=HxW"):
                write(network, (height, width), batch_size, path)
                bar.advance(f"comparing {path.name}")
                agreement = checker.check(load_program(path), (height, width), batch_size)
            bar.advance(f"wrote {path.name}")
            content = path.read_bytes()
            report.say(f"{path}: {len(content) / 1e6:.1f} MB; {agreement.text()}")
            if not agreement.detections:
                report.note(
                    "no detection was compared; lower --config.eval.score_threshold, or export "
                    "the run where its data set is available"
                )
            files.append(
                {
                    "file": path.name,
                    "bucket": [height, width],
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "agreement": agreement.text(),
                }
            )
            paths.append(path)
    facts = card.facts(network, kind, batch_size, files, opset)
    write_text(out / "load.py", Path(load.__file__).read_text())
    write_text(out / FOR_PEOPLE, card.markdown(facts))
    write_json(out / load.CARD, facts)  # last: marks the export as complete
    report.say(f"the files load {facts['loads']}")
    report.note("an exported model is code; load it only if you trust its origin")
    return paths


def check_onnx(what: str) -> None:
    """Raises `UserError` if ``what`` needs packages that are not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}; install with: pip install 'retina_jax[onnx]'"
        )


def _buckets(config: ml_collections.ConfigDict, chosen: str) -> Sequence[tuple[int, int]]:
    buckets = resolve(config).buckets
    if not chosen:
        return buckets
    named = {f"{height}x{width}": (height, width) for height, width in buckets}
    if chosen not in named:
        listed = ", ".join(named)
        raise UserError(
            f"--bucket={chosen} is not a bucket of the config; set --bucket to one of: {listed}"
        )
    return [named[chosen]]


def _in_float32(config: ml_collections.ConfigDict, report: Reporter) -> ml_collections.ConfigDict:
    if config.train.precision == "float32":
        return config
    report.note(
        f"train.precision={config.train.precision}: the ONNX file computes in float32, and is "
        "compared with the run's predictions in float32"
    )
    config = config.copy_and_resolve_references()
    config.train.precision = "float32"
    return config
