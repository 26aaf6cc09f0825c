"""A run as an ONNX file: the prediction step, primitive by primitive, then NonMaxSuppression.

The step is traced by JAX and converted from its equations, so the file computes what this program
computes, whatever the network. Equations of constants alone are computed here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from retina_jax.errors import UserError
from retina_jax.evaluation.predict_step import check_device_nms, make_predict_step
from retina_jax.exporting.onnx_graph import Graph, Value, ints
from retina_jax.exporting.onnx_primitives import RULES
from retina_jax.exporting.program import Program, input_shapes
from retina_jax.files import atomic_write
from retina_jax.prediction.load import onnx_program
from retina_jax.prediction.network import Network

OPSET = 18
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters of equations that hold the equations of a function."""


def write(network: Network, bucket: tuple[int, int], batch_size: int, path: Path) -> None:
    """Writes the program; see `program` for its inputs and outputs.

    Raises `UserError` for a network with an operation that ONNX lacks.
    """
    check_device_nms(network.config, "--format=onnx")
    step = make_predict_step(network.model, network.config)
    shapes = input_shapes(network, bucket, batch_size)
    traced = jax.make_jaxpr(lambda images, sizes: step(network.variables, images, sizes))(*shapes)
    graph = Graph(OPSET)
    inputs = [
        graph.input(name, shape.dtype, shape.shape)
        for name, shape in zip(("images", "sizes"), shapes, strict=True)
    ]
    consts = [np.asarray(value) for value in traced.consts]
    boxes, scores, labels = convert(graph, traced.jaxpr, consts, inputs)
    batch, candidates = shapes[1].shape[0], traced.out_avals[1].shape[1]
    outputs = suppress(graph, network, (boxes, scores, labels), inputs[1], (batch, candidates))
    most = network.config.eval.max_detections
    for name, value, dtype, shape in (
        ("boxes", outputs[0], np.float32, (batch, most, 4)),
        ("scores", outputs[1], np.float32, (batch, most)),
        ("labels", outputs[2], np.int32, (batch, most)),
    ):
        graph.output(value, name, dtype, shape)
    model = graph.model("retinanet", {"classes": json.dumps(network.classes.names)})
    if model.ByteSize() >= 2**31:
        raise UserError(
            f"--format=onnx holds at most 2 GB, but this network has {model.ByteSize() / 1e9:.1f} "
            "GB; use --format=stablehlo"
        )
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def load(path: Path) -> Program:
    """The program in a file, in onnxruntime on the CPU."""
    return onnx_program(path.read_bytes())


def convert(graph: Graph, jaxpr: Any, consts: list[Value], inputs: list[Value]) -> list[Value]:
    """Adds the equations of a jaxpr to the graph; returns its outputs."""
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return (
            np.asarray(atom.val, atom.aval.dtype)
            if isinstance(atom, core.Literal)
            else values[atom]
        )

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        if equation.primitive.name == "platform_index":  # chooses a branch of a later equation
            values[equation.outvars[0]] = np.asarray(0, np.int32)
            continue
        if platforms := equation.params.get("branches_platforms"):
            inner = equation.params["branches"][platforms.index(None)]  # not the form for CPUs
            given = given[1:]
        else:
            inner = next((equation.params[n] for n in _INNER if n in equation.params), None)
        if inner is not None:
            closed = getattr(inner, "jaxpr", inner)
            own = [np.asarray(value) for value in getattr(inner, "consts", ())]
            results = convert(graph, closed, own, given)
        elif _is_constant(equation, given):
            results = equation.primitive.bind(*given, **equation.params)
            if not equation.primitive.multiple_results:
                results = [results]
            results = [np.asarray(value) for value in results]
        elif equation.primitive.name in RULES:
            results = RULES[equation.primitive.name](graph, equation, *given)
            results = results if isinstance(results, list) else [results]
        else:
            raise UserError(
                f"--format=onnx has no rule for {equation.primitive.name}, which this network "
                "uses; use --format=stablehlo"
            )
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_constant(equation: Any, given: list[Value]) -> bool:
    """Whether to compute an equation here; a constant is not repeated into a large one."""
    if not all(isinstance(value, np.ndarray) for value in given):
        return False
    shapes = [out.aval.shape for out in equation.outvars]
    if not all(isinstance(size, (int, np.integer)) for shape in shapes for size in shape):
        return False
    repeats = equation.primitive.name == "broadcast_in_dim"
    return not repeats or math.prod(shapes[0]) <= max(1024, given[0].size)


def suppress(
    graph: Graph,
    network: Network,
    candidates: tuple[Value, Value, Value],
    sizes: Value,
    shape: tuple[Any, int],
) -> tuple[Value, Value, Value]:
    """NMS by class, and the best ``eval.max_detections`` boxes of all classes.

    The node takes the scores of each class for all boxes. What it keeps is put back in the order of
    the candidates, so that the best are chosen as on the host: by score, then by row.
    """
    options, (batch, count) = network.config.eval, shape
    boxes, scores, labels = candidates
    classes = np.arange(len(network.classes.names), dtype=np.int32)[None, :, None]
    of_class = graph.add("Equal", graph.add("Unsqueeze", labels, ints(1)), classes)
    own = graph.add("Unsqueeze", scores, ints(1))
    selected = graph.add(
        "NonMaxSuppression",
        boxes,
        graph.add("Where", of_class, own, np.float32(0)),
        ints(options.max_detections),  # of each class
        np.array([options.nms_iou], np.float32),
        np.array([options.score_threshold], np.float32),
    )
    place = graph.add("Gather", selected, ints(0, 2), axis=1)  # of image, class and candidate
    zeros = graph.add("Expand", np.zeros((1, 1), np.float32), graph.shape((batch, count)))
    kept = graph.add("ScatterND", zeros, place, graph.add("GatherND", scores, place))
    missing = options.max_detections - count
    if missing > 0:
        kept = graph.add("Pad", kept, ints(0, 0, 0, missing))
        labels = graph.add("Pad", labels, ints(0, 0, 0, missing))
        boxes = graph.add("Pad", boxes, ints(0, 0, 0, 0, missing, 0))
    best = _best(graph, kept, boxes, labels, options.max_detections)
    if options.cut_boxes != "after_nms":
        return best
    boxes, scores, labels = best
    sides = graph.cast(graph.add("Gather", sizes, ints(1, 0, 1, 0), axis=1), np.float32)
    limits = graph.add("Unsqueeze", sides, ints(1))
    boxes = graph.add("Min", graph.add("Max", boxes, np.float32(0)), limits)
    low, high = (graph.add("Gather", boxes, ints(*c), axis=2) for c in ((0, 1), (2, 3)))
    side = graph.add("ReduceMin", graph.add("Sub", high, low), ints(2), keepdims=0)
    there = graph.add("Greater", side, np.float32(0))
    scores = graph.add("Where", there, scores, np.float32(0))
    return _best(graph, scores, boxes, labels, options.max_detections)


def _best(
    graph: Graph, scores: Value, boxes: Value, labels: Value, most: int
) -> tuple[Value, Value, Value]:
    """The ``most`` highest scores, their boxes and labels; zeros where the score is 0."""
    scores, rows = graph.add("TopK", scores, ints(most), outputs=2, axis=1)
    there = graph.add("Greater", scores, np.float32(0))
    rows = graph.add("Unsqueeze", rows, ints(2))
    boxes = graph.add("GatherND", boxes, rows, batch_dims=1)
    labels = graph.add("GatherND", labels, rows, batch_dims=1)
    there_too = graph.add("Unsqueeze", there, ints(2))
    return (
        graph.add("Where", there_too, boxes, np.float32(0)),
        scores,
        graph.add("Where", there, labels, np.int32(0)),
    )
