"""Runs the exported detector in this folder: `Detector`, or ``python load.py IMAGE...``.

Needs NumPy, and JAX with flatbuffers for a .stablehlo file or onnxruntime for an .onnx file.
Reading and resizing images also needs OpenCV (Pillow, if the model was trained on antialiased
images).
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

CARD = "model.json"


class Detector:
    """The exported model. It is code, not data: load it only if you trust its origin."""

    def __init__(self, folder=Path(__file__).parent):
        self.folder = Path(folder)
        self.card = json.loads((self.folder / CARD).read_text())
        self.buckets = {tuple(file["bucket"]): file for file in self.card["files"]}
        self._programs = {}
        note = "note: an exported model is code, not data; load it only if you trust its origin"
        print(note, file=sys.stderr)

    def detect(self, images, sizes):
        """Boxes ``[n, k, 4]``, scores ``[n, k]`` and labels ``[n, k]`` in padded images.

        ``images [n, h, w, 3]``: RGB; ``(h, w)`` is one of ``buckets``; each image at the top left.
        ``sizes [n, 2]``: height and width of each image. Boxes are xyxy in pixels of the padded
        input; a score of 0 marks padding.
        """
        run, many = self.program(tuple(images.shape[1:3])), len(images)
        at_once = self.card["batch_size"] or many
        fill = [(0, -many % at_once)]
        images, sizes = (np.pad(x, fill + [(0, 0)] * (x.ndim - 1)) for x in (images, sizes))
        sizes = sizes.astype(np.int32)
        parts = [run(images[i : i + at_once], sizes[i : i + at_once])
                 for i in range(0, len(images), at_once)]  # fmt: skip
        return {k: np.concatenate([np.asarray(p[k]) for p in parts])[:many] for k in parts[0]}

    def __call__(self, image):
        """Boxes ``[k, 4]`` in pixels of an RGB image ``[height, width, 3]``, scores and labels."""
        padded, size = self.place(image)
        found = {k: v[0] for k, v in self.detect(padded[None], size[None]).items()}
        kept = found["scores"] > 0
        y, x = np.array(image.shape[:2]) / size
        boxes = found["boxes"][kept].astype(np.float64) * [x, y, x, y]
        return boxes, found["scores"][kept], found["labels"][kept]

    def place(self, image):
        """The image, resized to the bucket where it is largest and padded, and its size there."""
        rule, (height, width) = self.card["placement"], image.shape[:2]
        limit = min(rule["short_side"] / min(height, width), rule["long_side"] / max(height, width))
        scales = {b: min(limit, b[0] / height, b[1] / width) for b in self.buckets}
        bucket = min(scales, key=lambda b: (-round(scales[b], 9), b[0] * b[1]))
        up = 0.5 if rule["rounding"] == "nearest" else 0.0
        size = [min(most, max(1, int(side * scales[bucket] + up)))
                for side, most in zip((height, width), bucket, strict=True)]  # fmt: skip
        padded = np.zeros((*bucket, 3), self.card["pixels"])
        image = image.astype(padded.dtype)
        if rule["antialias"]:
            from PIL import Image

            image = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        elif list(image.shape[:2]) != size:
            import cv2

            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        padded[: size[0], : size[1]] = image
        return padded, np.array(size, np.int32)

    def program(self, bucket):
        """The function in the file of a bucket; the file is read on first use."""
        if bucket not in self.buckets:
            there = ", ".join(f"{h}x{w}" for h, w in self.buckets)
            raise ValueError(
                f"this export has no model for {bucket[0]}x{bucket[1]} pixels, only for {there}"
            )
        if bucket not in self._programs:
            content = (self.folder / self.buckets[bucket]["file"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != self.buckets[bucket]["sha256"]:
                raise ValueError(
                    f"{self.buckets[bucket]['file']} does not match its SHA-256 in model.json"
                )
            self._programs[bucket] = PROGRAMS[self.card["format"]](content)
        return self._programs[bucket]


def stablehlo_program(content):
    """The function in the bytes of a .stablehlo file."""
    import jax
    from jax import export

    return jax.jit(export.deserialize(bytearray(content)).call)


def onnx_program(content):
    """The function in the bytes of an .onnx file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda i, s: dict(zip(names, session.run(names, {"images": i, "sizes": s}), strict=True))


PROGRAMS = {"stablehlo": stablehlo_program, "onnx": onnx_program}


def main(paths):
    import cv2

    detector = Detector()
    for path in paths:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            raise SystemExit(f"{path} is not an image that OpenCV can read")
        boxes, scores, labels = detector(np.ascontiguousarray(image[..., ::-1]))
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            found = {"file": path, "class": detector.card["classes"][label]["name"],
                     "score": round(score, 4), "box": [round(v, 2) for v in box]}  # fmt: skip
            print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
