"""torchvision's own RetinaNet, stage by stage on one small picture, on weights of a formula."""

import zlib

import numpy as np

INPUT = (128, 160)
CLASSES = 3
GRADIENTS = (
    "backbone.body.conv1.weight",
    "backbone.body.layer2.0.conv1.weight",
    "backbone.body.0.0.weight",
    "backbone.body.1.conv.1.weight",
    "backbone.body.2.conv.1.0.weight",
    "backbone.body.5.conv.1.0.weight",
    "backbone.body.15.conv.0.0.weight",
    "backbone.fpn.inner_blocks.0.0.weight",
    "backbone.fpn.layer_blocks.2.0.bias",
    "head.classification_head.cls_logits.weight",
    "head.regression_head.bbox_reg.bias",
)
_SAMPLE = 97  # every so many numbers of a large array are kept


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on the name alone, and keep a deep network tame."""
    random = np.random.RandomState(zlib.crc32(name.encode()))  # a stream that NumPy froze
    values = random.uniform(-1, 1, shape)
    if name.endswith("running_var"):
        values = 1 + 0.3 * values
    elif len(shape) == 4:
        gain = 0.2 if "cls_logits" in name or "bbox_reg" in name else 5
        values *= np.sqrt(gain / np.prod(shape[1:]))
    elif name.endswith("cls_logits.bias"):
        values = values - 2
    elif name.endswith(("bias", "running_mean")):
        values *= 0.1
    else:  # scale of a norm; the last of a residual branch is small
        last = "bn3" in name or name.endswith("conv.3.weight")
        values = (0.3 if last else 0.8) + 0.1 * values
    return values.astype(np.float32)


def picture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth picture of 96 × 120 with three boxes."""
    random = np.random.RandomState(0)
    coarse = random.uniform(0, 255, (8, 10, 3))
    image = np.kron(coarse, np.ones((12, 12, 1)))
    for axis in (0, 1):  # blur the blocks
        image = (image + np.roll(image, 3, axis) + np.roll(image, -3, axis)) / 3
    boxes = np.array([[10, 12, 60, 70], [50, 30, 110, 90], [80, 5, 100, 25]], np.float32)
    return image.astype(np.uint8), boxes, np.array([1, 0, 2])


def sample(array: np.ndarray) -> np.ndarray:
    """Some of a large array's numbers."""
    return np.ascontiguousarray(array).reshape(-1)[::_SAMPLE]


def set_weights(module) -> None:
    """Gives a torch module the weights of the formula."""
    import torch

    state = module.state_dict()
    module.load_state_dict(
        {
            name: value if name.endswith("num_batches_tracked") else
            torch.from_numpy(weight(name, tuple(value.shape)))
            for name, value in state.items()
        }
    )  # fmt: skip


def on_mobilenet(torchvision, num_classes: int, **options):
    """torchvision's RetinaNet, with its default anchors, on its MobileNetV2."""
    detection = torchvision.models.detection
    stages, channels = {"6": "0", "13": "1", "17": "2"}, [32, 96, 320]
    top = torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256)
    body = torchvision.models.mobilenet_v2(weights=None).features[:18]
    backbone = detection.backbone_utils.BackboneWithFPN(body, stages, channels, 256, top)
    anchors = detection.retinanet._default_anchorgen()
    return detection.RetinaNet(backbone, num_classes, anchor_generator=anchors, **options)


def make_case(torchvision, version: str) -> dict[str, np.ndarray]:
    """Every stage of a version of torchvision's RetinaNet, batch norm on its statistics."""
    import torch

    detection = torchvision.models.detection
    options = {"num_classes": CLASSES, "min_size": INPUT[0], "max_size": INPUT[1]}
    if version == "torchvision_mobilenet":
        model = on_mobilenet(torchvision, **options)
    else:
        make = {
            "torchvision_v1": detection.retinanet_resnet50_fpn,
            "torchvision_v2": detection.retinanet_resnet50_fpn_v2,
        }[version]
        model = make(weights=None, weights_backbone=None, **options)
    set_weights(model)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    image, boxes, labels = picture()
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
    prepared, targets = model.transform([tensor], [target])
    features = list(model.backbone(prepared.tensors).values())
    outputs = model.head(features)
    anchors = model.anchor_generator(prepared, features)
    overlaps = torchvision.ops.box_iou(targets[0]["boxes"], anchors[0])
    losses = model([tensor], [target])
    (losses["classification"] + losses["bbox_regression"]).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.eval()
    with torch.no_grad():
        found = model([tensor])[0]
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients.values()))
    case = {
        "batch": prepared.tensors.permute(0, 2, 3, 1),
        "image_size": torch.tensor(prepared.image_sizes[0]),
        "boxes_resized": targets[0]["boxes"],
        "anchors": anchors[0],
        "matched": model.proposal_matcher(overlaps).to(torch.int8),
        "cls_logits": outputs["cls_logits"],
        "box_regression": outputs["bbox_regression"],
        "loss_classification": losses["classification"],
        "loss_box": losses["bbox_regression"],
        "grad_norm": norm,
        **{f"feature_{i}": f.permute(0, 2, 3, 1) for i, f in enumerate(features)},
        **{f"grad/{name}": gradients[name] for name in GRADIENTS if name in gradients},
        **{f"det_{name}": found[name] for name in ("boxes", "scores", "labels")},
    }
    return {name: value.detach().numpy() for name, value in case.items()}
