"""(variables, images, sizes) -> a fixed number of candidates per image, on the device."""

from collections.abc import Callable

import jax
import ml_collections

from retina_jax.config import resolve
from retina_jax.config.values import coder_arguments
from retina_jax.errors import UserError
from retina_jax.models.retinanet import RetinaNet, anchors_for, normalize_images, strides_for
from retina_jax.ops.nms import cut_to_image, keep_best
from retina_jax.ops.postprocess import scores_of, select_candidates
from retina_jax.types import Candidates


def make_predict_step(
    model: RetinaNet, config: ml_collections.ConfigDict
) -> Callable[..., Candidates]:
    """The prediction step for one device's share of a batch.

    Maps images ``[n, h, w, 3]`` and sizes ``[n, 2]`` to candidates, whose boxes are in pixels of
    the network input. With ``model.centerness``, scores are √(class probability · centerness).
    """

    softmax, coder = resolve(config).softmax, coder_arguments(config)

    def predict_step(variables, images: jax.Array, sizes: jax.Array) -> Candidates:
        inputs = normalize_images(images, sizes, config.data)
        predictions = model.apply(variables, inputs, train=False)
        anchors = anchors_for(config, images.shape[1:3])
        strides = strides_for(config, images.shape[1:3])

        def one_image(predictions, size):
            return select_candidates(
                scores_of(predictions, softmax),
                predictions.box_outputs,
                anchors,
                size,
                config.eval.score_threshold,
                config.eval.top_k,
                config.eval.cut_boxes == "before_nms",
                strides,
                **coder,
            )

        return jax.vmap(one_image)(predictions, sizes)

    return predict_step


def check_device_nms(config: ml_collections.ConfigDict, what: str) -> None:
    """Raises `UserError` if the config asks for an NMS that ``what`` does not support."""
    options = config.eval
    if options.nms == "soft":
        raise UserError(f"{what} does not support eval.nms=soft; set --config.eval.nms=hard")
    if options.class_agnostic:
        raise UserError(
            f"{what} does not support eval.class_agnostic=True; set "
            "--config.eval.class_agnostic=False"
        )


def make_detection_step(
    model: RetinaNet, config: ml_collections.ConfigDict
) -> Callable[..., Candidates]:
    """The prediction step with NMS: ``eval.max_detections`` boxes per image, highest score first.

    A score of 0 marks padding. The boxes are those of NMS on the host (`evaluation.nms`). Raises
    `UserError` for soft or class-agnostic NMS.
    """
    check_device_nms(config, "NMS on the device")
    predict, options = make_predict_step(model, config), config.eval

    def one_image(candidates: Candidates, size: jax.Array) -> Candidates:
        kept = keep_best(candidates, options.nms_iou, options.max_detections)
        return cut_to_image(kept, *size) if options.cut_boxes == "after_nms" else kept

    def detection_step(variables, images: jax.Array, sizes: jax.Array) -> Candidates:
        return jax.vmap(one_image)(predict(variables, images, sizes), sizes)

    return detection_step
