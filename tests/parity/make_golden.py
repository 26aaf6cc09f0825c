"""Writes golden/: torchvision on a small picture, and what is small of Detectron2's case.

python tests/parity/make_golden.py [FOLDER OF DETECTRON2'S CASE]

Weights are not kept: torchvision_case.weight makes them from their names.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from test_torchvision import GOLDEN, LARGE, SYSTEMS  # noqa: E402
from torchvision_case import make_case, sample  # noqa: E402
from torchvision_cpu import import_torchvision  # noqa: E402


def detectron2(case) -> dict[str, np.ndarray]:
    """Boxes, matches, logits, losses, detections, and deltas where they count."""
    names = "image_sizes cls_logits loss_classification loss_box loss_normalizer".split()
    kept = {"batch_size": np.array(case["batch"].shape), **{name: case[name] for name in names}}
    kept["anchors"] = sample(case["anchors"])
    for i in range(2):
        # what scores less than the last of the best 100 cannot be among them
        scores = 1 / (1 + np.exp(-case["cls_logits"][i]))
        alive = (scores > case[f"det_scores_{i}"].min() - 0.001).any(1)
        foreground = (case[f"anchor_label_{i}"] >= 0) & (case[f"anchor_label_{i}"] < 3)
        rows = np.flatnonzero(alive | foreground)
        kept |= {
            f"kept_{i}": rows.astype(np.int32),
            f"box_regression_{i}": case["box_regression"][i][rows],
            f"anchor_label_{i}": case[f"anchor_label_{i}"].astype(np.int8),
            f"image_size_{i}": np.array(case[f"image_{i}"].shape[:2]),
        }
        for name in ("gt_boxes_resized", "gt_labels", "det_boxes", "det_scores", "det_labels"):
            kept[f"{name}_{i}"] = case[f"{name}_{i}"]
    return kept


def main(folder: str | None) -> None:
    GOLDEN.mkdir(exist_ok=True)
    torchvision = import_torchvision()
    for system in SYSTEMS:
        case = make_case(torchvision, system)
        np.save(GOLDEN / "batch.npy", case["batch"].astype(np.float32))
        small = {n: sample(v) if n.startswith(LARGE) else v for n, v in case.items()}
        small |= {f"largest/{n}": np.abs(v).max() for n, v in case.items() if n.startswith(LARGE)}
        np.savez_compressed(GOLDEN / f"{system}.npz", **small)
    if folder:
        case = dict(np.load(Path(folder) / "case.npz"))
        np.savez_compressed(GOLDEN / "detectron2.npz", **detectron2(case))


if __name__ == "__main__":
    main(*sys.argv[1:2] or [None])
