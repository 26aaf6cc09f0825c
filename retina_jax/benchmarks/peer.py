"""Times the training step beside torchvision's RetinaNet: same images, boxes, size and device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from retina_jax import parallel
from retina_jax.benchmarks.steps import (
    described,
    peak_memory_gib,
    random_batch,
    steps_of,
    take_turns,
    training_step,
)
from retina_jax.config import resolve
from retina_jax.config.backbones import BACKBONES, ResidualKind
from retina_jax.errors import UserError
from retina_jax.ops.anchors import LEVELS, level_sizes
from retina_jax.types import Batch


def check_torchvision() -> None:
    """Raises `UserError` if torchvision is not installed, or does not load with this torch."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        raise UserError(
            "benchmark torchvision needs torchvision; run pip install 'retina_jax[torchvision]'"
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"torchvision does not load with this torch ({error}); install the two from one index"
        ) from None


def check_comparable(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` where torchvision's RetinaNet has no counterpart of the config."""
    if not isinstance(BACKBONES[config.model.backbone], ResidualKind):
        raise UserError(
            f"benchmark torchvision has no model.backbone={config.model.backbone}; set it to a "
            "ResNet, such as resnet50"
        )
    for name, value, needed in (
        ("model.width", config.model.width, 64),
        ("model.fpn_channels", config.model.fpn_channels, 256),
        ("model.head_channels", config.model.head_channels, 256),
        ("model.head_convs", config.model.head_convs, 4),
        ("train.accumulate", config.train.accumulate, 1),
    ):
        if value != needed:
            raise UserError(
                f"benchmark torchvision compares whole steps of equal networks, and {name}={value} "
                f"differs from torchvision's {needed}; set --config.{name}={needed}"
            )


def build_torchvision(config: ml_collections.ConfigDict, classes: int, device: str) -> Any:
    """torchvision's RetinaNet with the config's backbone, norm, frozen stages and anchors."""
    import torch
    import torchvision
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    norm = {} if config.model.norm == "batch" else {"norm_layer": FrozenBatchNorm2d}
    body = getattr(torchvision.models, config.model.backbone)(weights=None, **norm)
    last = LastLevelP6P7(body.fc.in_features, 256)
    # torchvision counts the stages that train: 5 with the stem
    trained = 5 - config.model.frozen_stages
    backbone = _resnet_fpn_extractor(body, trained, returned_layers=[2, 3, 4], extra_blocks=last)
    anchors = config.anchors
    sizes = tuple(
        level_sizes(level, anchors.scale, anchors.octaves, anchors.truncate_sizes)
        for level in LEVELS
    )
    generator = AnchorGenerator(sizes, (tuple(anchors.ratios),) * len(LEVELS))
    net = RetinaNet(backbone, classes, anchor_generator=generator)
    return net.to(device).to(memory_format=torch.channels_last).train()


def torchvision_step(
    config: ml_collections.ConfigDict, batch: Batch, classes: int
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], float | None]]:
    """``run()``, ``wait()`` and ``peak()`` of a training step on ``batch``.

    ``run`` takes a step of SGD, with bfloat16 by autocast where the config says bfloat16, and
    weights in channels-last order. It leaves out torchvision's transform (scaling and padding),
    because the batch is scaled and padded. ``peak()``: GiB of GPU memory; None on a CPU.
    """
    import torch
    from torchvision.models.detection.image_list import ImageList

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True
    net = build_torchvision(config, classes, device)
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad],
        resolve(config).learning_rate,
        config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    images = torch.from_numpy(np.asarray(batch.images)).to(device)
    mean, std = (
        torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (config.data.mean, config.data.std)
    )
    truth = batch.ground_truth
    targets = [
        {
            "boxes": torch.from_numpy(truth.boxes[i][truth.valid[i]]).to(device),
            "labels": torch.from_numpy(truth.labels[i][truth.valid[i]]).long().to(device),
        }
        for i in range(len(images))
    ]
    sizes = [tuple(map(int, size)) for size in batch.sizes]
    low = config.train.precision == "bfloat16"

    def run() -> None:
        pixels = (images.permute(0, 3, 1, 2).float() - mean) / std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=low):
            features = list(net.backbone(pixels).values())
            outputs = net.head(features)
        outputs = {name: value.float() for name, value in outputs.items()}
        anchors = net.anchor_generator(ImageList(pixels, sizes), features)
        losses = net.compute_loss(targets, outputs, anchors)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None

    return run, wait, peak


def time_beside_torchvision(
    config: ml_collections.ConfigDict, runs: int, steps: int, classes: int
) -> Iterator[dict]:
    """Times both programs in turn, ``runs`` times, on the first bucket and on one device.

    Yields one row per program; the second has the ratio of the medians.
    """
    check_comparable(config)
    check_torchvision()
    devices = parallel.Devices.local(1)  # torchvision uses one
    bucket, total = resolve(config).buckets[0], config.train.batch_size
    host_batch = random_batch(config, bucket, total, classes)
    own, *_ = training_step(config, devices, classes)
    batch = devices.shard(host_batch)
    their_run, their_wait, their_peak = torchvision_step(config, host_batch, classes)

    def theirs() -> None:
        for _ in range(steps):
            their_run()
        their_wait()

    rounds = {"retina_jax": steps_of(own, batch, steps), "torchvision": theirs}
    for take in rounds.values():
        take()  # compiles, and lets cuDNN choose its algorithms
    seconds = {
        name: sorted(each / steps for each in taken)
        for name, taken in take_turns(rounds, runs).items()
    }
    peaks = {"retina_jax": peak_memory_gib(devices), "torchvision": their_peak()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        row = {
            "program": name,
            **described(config, devices, bucket, total),
            "images_per_second": round(total / median, 2),
            "step_seconds": [round(s, 4) for s in seconds[name]],
            "peak_memory_gib": peaks[name],
        }
        if name == "torchvision":
            row["speed_of_retina_jax"] = round(median / medians["retina_jax"], 2)
        yield row
