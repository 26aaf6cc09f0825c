"""The model card of an export: Markdown to read, JSON for `load.py`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

from retina_jax.config.values import resolve, to_json
from retina_jax.prediction.network import Network
from retina_jax.training.workdir import read_resolved
from retina_jax.version import __version__

FORMATS = {
    "stablehlo": "StableHLO, serialised by jax.export",
    "onnx": "ONNX",
}
_PACKAGES = {
    "stablehlo": ("jax", "jaxlib", "flax", "numpy"),
    "onnx": ("jax", "flax", "numpy", "onnx", "onnxruntime"),
}
_LOADS = {
    "stablehlo": "with jax {jax} and, by the guarantee of jax.export, with every jax released "
    "within six months after it; later versions may refuse them. To load them for longer, keep jax "
    "{jax} installed, or export the run again",
    "onnx": "with every runtime that implements ONNX operator set {opset}; this does not expire",
}
_CODE = (
    "An exported model is a program that runs on your machine, not only data. Load it only if you "
    "trust its origin; `load.py` compares each file with its SHA-256 in `model.json`."
)


def facts(
    network: Network, kind: str, batch_size: int, files: Sequence[dict[str, Any]], opset: int
) -> dict[str, Any]:
    """The content of model.json, for the network of a run."""
    config, data, checkpoint = network.config, network.config.data, network.checkpoint
    metrics = checkpoint.folder / "eval" / str(checkpoint.step) / "metrics.json"
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES[kind]}
    return {
        "format": kind,
        "files": list(files),
        "batch_size": batch_size,
        "pixels": "float32" if data.float_pixels else "uint8",
        "placement": {
            "short_side": data.short_side,
            "long_side": data.long_side,
            "rounding": data.rounding,
            "antialias": data.antialias,
        },
        "classes": [
            {"name": name, "category_id": int(number)} for number, name in network.classes.pairs()
        ],
        "loads": _LOADS[kind].format(jax=versions["jax"], opset=opset),
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "run": checkpoint.folder.name,
        "step": checkpoint.step,
        "averaged_weights": checkpoint.averaged,
        "metrics": json.loads(metrics.read_text()) if metrics.is_file() else None,
        "data": read_resolved(checkpoint.folder).get("data") or {},
        "pixel_scale": network.pixel_scale,
        "versions": {"retina_jax": __version__, "python": platform.python_version(), **versions},
        "config": to_json(config, resolve(config).to_json()),
    }


def markdown(card: dict[str, Any]) -> str:
    """The model card as Markdown."""
    config, evaluation = card["config"], card["config"]["eval"]
    batch, kind = card["batch_size"] or "any", FORMATS[card["format"]]
    weights = ", averaged weights" if card["averaged_weights"] else ""
    lines = [
        f"# RetinaNet, {config['model']['backbone']}, {len(card['classes'])} classes",
        "",
        f"{kind}; exported from step {card['step']} of `{card['run']}`{weights}, "
        f"{card['exported']}.",
        "",
        f"**{_CODE}**",
        "",
        "## Use",
        "",
        "```sh",
        "python load.py IMAGE...    # needs OpenCV to read images",
        "```",
        "",
        "From Python, `load.Detector` needs only NumPy and "
        + ("JAX with flatbuffers" if card["format"] == "stablehlo" else "onnxruntime")
        + ". Each file takes `images [n, h, w, 3]` "
        f"({card['pixels']}, RGB, each image resized and placed at the top left) and `sizes "
        "[n, 2]` (int32: height and width without padding), and returns `boxes [n, k, 4]` (xyxy, "
        "pixels of the input), `scores [n, k]` and `labels [n, k]`, highest score first, with "
        f"k = {evaluation['max_detections']}. "
        "A score of 0 marks padding. Normalisation, decoding and NMS are part of the model.",
        "",
        "With retina_jax installed, `Detector.from_export` and `retina-jax predict --export` take "
        "this folder instead of a run.",
        "",
        f"The files load {card['loads']}.",
        "",
        "| file | input | batch | bytes | compared with the run |",
        "|---|---|---|---|---|",
    ]
    for file in card["files"]:
        height, width = file["bucket"]
        lines.append(
            f"| `{file['file']}` | {height}×{width} | {batch} | {file['bytes']:,} | "
            f"{file['agreement']} |"
        )
    lines += ["", "## Classes", "", _listed(card["classes"]), "", "## Metrics", ""]
    lines += _metrics(card["metrics"])
    lines += ["", "## Data", ""]
    lines += [
        f"- {split}: " + ", ".join(f"{what} `{value}`" for what, value in marks.items())
        for split, marks in card["data"].items()
    ] or ["The run does not record fingerprints of its data."]
    if card["pixel_scale"]:
        low, high = card["pixel_scale"]
        lines.append(f"- 16-bit or float images: {low:g} to {high:g} become 0 to 255")
    lines += ["", "## Versions", ""]
    lines += [", ".join(f"{name} {version}" for name, version in card["versions"].items())]
    settings = json.dumps(config, indent=2)
    lines += ["", "## Config", "", "```json", settings, "```", ""]
    return "\n".join(lines)


def _listed(classes: Sequence[dict[str, Any]]) -> str:
    named = (f"{label} {c['name']} (id {c['category_id']})" for label, c in enumerate(classes))
    return ", ".join(named)


def _metrics(metrics: dict[str, Any] | None) -> list[str]:
    if not metrics:
        return ["The run has no evaluation of this step."]
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float) and v >= 0}
    return [
        f"From the run's own evaluation of this step, on {metrics['images']} images:",
        "",
        "| " + " | ".join(numbers) + " |",
        "|" + "---|" * len(numbers),
        "| " + " | ".join(f"{value:.3f}" for value in numbers.values()) + " |",
    ]
