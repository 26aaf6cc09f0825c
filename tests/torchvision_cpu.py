"""torchvision for tests, also beside a torch without CUDA, where its C++ operators do not load."""

import sys

import pytest

_libraries = []  # torch forgets operators whose library is collected


def import_torchvision():
    """The torchvision package; skips the test only where torch or torchvision is not installed."""
    try:
        return _import_torchvision()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


def _import_torchvision():
    """With ``nms`` of our own where its operators do not load.

    A wheel that was built for CUDA finds no operators here; RetinaNet needs ``nms`` alone of them.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        _libraries.append(library)
        import torchvision

        torchvision.ops.boxes._assert_has_ops = lambda: None
    return torchvision


def _nms(boxes, scores, iou_threshold):
    """Indices of the boxes that stay, best first: each removes the later that overlap it more."""
    import torch

    order = scores.argsort(descending=True, stable=True)
    low, high = boxes[order, :2], boxes[order, 2:]
    area = (high - low).prod(1)
    overlap = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    intersection = overlap.clamp(min=0).prod(2)
    iou = intersection / (area[:, None] + area - intersection)
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~(iou[i, i + 1 :] > iou_threshold)
    return order[alive]
