"""Published weights by name: where they are, their licence, their pixels and their hash."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path, PurePosixPath

from retina_jax.errors import UserError

BASES = {
    "torchvision": "https://download.pytorch.org/models/",
    "detectron2": "https://dl.fbaipublicfiles.com/detectron2/",
}
"""URLs of the folders that systems publish their weights in, by the prefix of a name."""

LIST = "retina-jax import-weights --list"
"""The command that prints the table."""

RGB = "RGB"
BGR_MSRA = "BGR, MSRA"
BGR_FAIR = "BGR, FAIR"
PIXELS = {
    RGB: "RGB, ImageNet's mean and standard deviation; the default of this program",
    BGR_MSRA: "BGR, ImageNet's mean, not divided by the standard deviation",
    BGR_FAIR: "BGR, ImageNet's mean and standard deviation",
}
"""The inputs that weights were trained for (`interop.weights` holds the numbers)."""

_OF_IMAGENET = "BSD-3-Clause; ImageNet's terms may apply"
_OF_COCO = "BSD-3-Clause; COCO's terms may apply"
_OF_ZOO = "CC BY-SA 3.0"


@dataclasses.dataclass(frozen=True)
class Digest:
    """All digits of a file's hash, or the first ones."""

    algorithm: str
    """``sha256`` or ``md5``."""
    digits: str

    @property
    def name(self) -> str:
        return {"sha256": "SHA-256", "md5": "MD5"}[self.algorithm]

    @property
    def is_whole(self) -> bool:
        return len(self.digits) == {"sha256": 64, "md5": 32}[self.algorithm]

    def __str__(self) -> str:
        return f"{self.name} {self.digits}" + ("" if self.is_whole else "…")


@dataclasses.dataclass(frozen=True)
class Published:
    """One file of weights that another system publishes."""

    system: str
    short: str
    """The name without its system."""
    what: str
    """The network, and what it was trained on."""
    file: str
    """Path of the file below its system's folder (`BASES`)."""
    mebibytes: float | None
    """Size of the file as published; None if it is not."""
    licence: str
    """The publisher's statement."""
    pixels: str
    """A key of `PIXELS`."""
    digest: Digest | None
    """None: no hash is published."""

    @property
    def name(self) -> str:
        return f"{self.system}:{self.short}"

    @property
    def url(self) -> str:
        return BASES[self.system] + self.file

    @property
    def path(self) -> Path:
        """Where the file is kept, relative to the folder of fetched weights."""
        return Path(self.system) / PurePosixPath(self.file)


def _torchvision(
    short: str,
    what: str,
    file: str,
    mebibytes: float,
    licence: str = _OF_IMAGENET,
    sha256: str = "",
) -> Published:
    """``sha256``: all digits, if a file was at hand; else those in the file's name."""
    # torch.hub.load_state_dict_from_url: NAME-<first eight or more digits of SHA-256>.pth
    digits = sha256 or re.fullmatch(r".*-([0-9a-f]{8})\.pth", file)[1]
    digest = Digest("sha256", digits)
    return Published("torchvision", short, what, file, mebibytes, licence, RGB, digest)


def _detectron2(short: str, what: str, file: str, pixels: str) -> Published:
    # MODEL_ZOO.md: "any model on this page contains its md5 prefix in its file name"; the ImageNet
    # models do not
    match = re.fullmatch(r".*/model_final_([0-9a-f]{6})\.pkl", file)
    digest = Digest("md5", match[1]) if match else None
    return Published("detectron2", short, what, file, None, _OF_ZOO, pixels, digest)


# torchvision: the Weights enums of torchvision.models. V1 are the weights that torchvision's own
# detectors start from; V2 were trained with a longer recipe.
_ROWS = (
    _torchvision("resnet18", "ResNet-18, ImageNet, V1", "resnet18-f37072fd.pth", 44.661),
    _torchvision("resnet34", "ResNet-34, ImageNet, V1", "resnet34-b627a593.pth", 83.275),
    _torchvision("resnet50", "ResNet-50, ImageNet, V1", "resnet50-0676ba61.pth", 97.781),
    _torchvision("resnet50_v2", "ResNet-50, ImageNet, V2", "resnet50-11ad3fa6.pth", 97.79),
    _torchvision("resnet101", "ResNet-101, ImageNet, V1", "resnet101-63fe2227.pth", 170.511),
    _torchvision("resnet101_v2", "ResNet-101, ImageNet, V2", "resnet101-cd907fc2.pth", 170.53),
    _torchvision("resnet152", "ResNet-152, ImageNet, V1", "resnet152-394f9c45.pth", 230.434),
    _torchvision("resnet152_v2", "ResNet-152, ImageNet, V2", "resnet152-f82ba261.pth", 230.474),
    _torchvision(
        "resnext50_32x4d", "ResNeXt-50 32x4d, ImageNet, V1", "resnext50_32x4d-7cdf4587.pth", 95.789
    ),
    _torchvision(
        "resnext50_32x4d_v2", "ResNeXt-50 32x4d, ImageNet, V2", "resnext50_32x4d-1a0047aa.pth",
        95.833,
    ),
    _torchvision(
        "resnext101_32x8d", "ResNeXt-101 32x8d, ImageNet, V1", "resnext101_32x8d-8ba56ff5.pth",
        339.586,
    ),
    _torchvision(
        "resnext101_32x8d_v2", "ResNeXt-101 32x8d, ImageNet, V2", "resnext101_32x8d-110c445d.pth",
        339.673,
    ),
    _torchvision(
        "resnext101_64x4d", "ResNeXt-101 64x4d, ImageNet, V1", "resnext101_64x4d-173b62eb.pth",
        319.318,
    ),
    _torchvision(
        "wide_resnet50_2", "Wide ResNet-50-2, ImageNet, V1", "wide_resnet50_2-95faca4d.pth", 131.82
    ),
    _torchvision(
        "wide_resnet50_2_v2", "Wide ResNet-50-2, ImageNet, V2", "wide_resnet50_2-9ba9bcbe.pth",
        263.124,
    ),
    _torchvision(
        "mobilenet_v2", "MobileNetV2, ImageNet, V1", "mobilenet_v2-b0353104.pth", 13.555,
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    _torchvision("mobilenet_v2_v2", "MobileNetV2, ImageNet, V2", "mobilenet_v2-7ebf99e0.pth",
                 13.598),
    _torchvision(
        "retinanet_resnet50_fpn", "RetinaNet, ResNet-50-FPN, COCO, AP 36.4",
        "retinanet_resnet50_fpn_coco-eeacb38b.pth", 130.267, _OF_COCO,
    ),
    _torchvision(
        "retinanet_resnet50_fpn_v2", "RetinaNet v2, ResNet-50-FPN, COCO, AP 41.5",
        "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 146.037, _OF_COCO,
    ),
    # Detectron2: MODEL_ZOO.md and detectron2/model_zoo/model_zoo.py
    _detectron2(
        "MSRA/R-50", "ResNet-50 of MSRA, ImageNet", "ImageNetPretrained/MSRA/R-50.pkl", BGR_MSRA
    ),
    _detectron2(
        "MSRA/R-101", "ResNet-101 of MSRA, ImageNet", "ImageNetPretrained/MSRA/R-101.pkl", BGR_MSRA
    ),
    _detectron2(
        "FAIR/X-101-32x8d", "ResNeXt-101 32x8d of FAIR, ImageNet",
        "ImageNetPretrained/FAIR/X-101-32x8d.pkl", BGR_FAIR,
    ),
    _detectron2(
        "torchvision/R-50", "torchvision's ResNet-50, ImageNet",
        "ImageNetPretrained/torchvision/R-50.pkl", RGB,
    ),
    _detectron2(
        "retinanet_R_50_FPN_1x", "RetinaNet, ResNet-50-FPN, COCO, AP 37.4",
        "COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl", BGR_MSRA,
    ),
    _detectron2(
        "retinanet_R_50_FPN_3x", "RetinaNet, ResNet-50-FPN, COCO, AP 38.7",
        "COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl", BGR_MSRA,
    ),
    _detectron2(
        "retinanet_R_101_FPN_3x", "RetinaNet, ResNet-101-FPN, COCO, AP 40.4",
        "COCO-Detection/retinanet_R_101_FPN_3x/190397697/model_final_971ab9.pkl", BGR_MSRA,
    ),
)  # fmt: skip

CATALOGUE = {row.name: row for row in _ROWS}


def is_name(source: str) -> bool:
    """Whether ``source`` is a name, ``SYSTEM:NAME``, even an unknown one, rather than a path."""
    if source.startswith(tuple(f"{system}:" for system in BASES)):
        return True
    has_form = re.match(r"[A-Za-z][\w-]+:(?!//)", source)
    return bool(has_form) and not Path(source).exists()


def find(name: str, field: str) -> Published:
    """The weights called ``name``. Raises `UserError` with similar names, naming ``field``."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise UserError(f"{field}={name!r} is not a known name; {suggestion(name)}")


def suggestion(name: str) -> str:
    """What to write instead of ``name``: up to three similar names, and how to list all."""
    near = [row.name for row in _ROWS if name.endswith(row.file)]  # detectron2://…, as in configs
    if not near:
        by_short = {row.short.lower(): row.name for row in _ROWS}
        short = name.rpartition(":")[2].lower()
        near = [by_short[each] for each in difflib.get_close_matches(short, by_short)]
    advice = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{advice}{LIST} prints all names"


def table() -> list[str]:
    """The table as lines of text, with a header."""
    cells = [("name", "weights", "MiB", "pixels", "hash", "licence", "URL")]
    for row in CATALOGUE.values():
        size = "" if row.mebibytes is None else f"{row.mebibytes:.1f}"
        kind = _kind(row.digest)
        cells.append((row.name, row.what, size, row.pixels, kind, row.licence, row.url))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, what, size, *rest in cells:
        shown = [name.ljust(widths[0]), what.ljust(widths[1]), size.rjust(widths[2])]
        shown += [text.ljust(width) for text, width in zip(rest, widths[3:], strict=True)]
        lines.append("  ".join(shown).rstrip())
    return lines


def _kind(digest: Digest | None) -> str:
    if digest is None:
        return "none: needs --trust"
    return digest.name + ("" if digest.is_whole else f", first {len(digest.digits)} digits")
