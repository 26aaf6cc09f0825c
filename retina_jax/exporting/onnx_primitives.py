"""The ONNX nodes of each JAX primitive that a prediction step consists of.

Each function takes the graph, the equation and the values of its inputs. It returns its output, or
a list of several. What ONNX cannot express raises `UserError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from retina_jax.errors import UserError
from retina_jax.exporting.onnx_graph import Graph, Value, ints

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
_SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs",
    "sign": "Sign", "floor": "Floor", "logistic": "Sigmoid", "lt": "Less", "gt": "Greater",
    "le": "LessOrEqual", "ge": "GreaterOrEqual", "eq": "Equal", "pow": "Pow",
}  # fmt: skip
"""Primitives with one ONNX operator of the same meaning, for the types that occur here.

Integers divide towards zero in both.
"""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def refuse(equation: Any, why: str) -> None:
    raise UserError(
        f"--format=onnx cannot express this network: {equation.primitive.name} {why}; "
        "use --format=stablehlo"
    )


def _elementwise(kind: str) -> Rule:
    return lambda graph, equation, *values: graph.add(kind, *values)


RULES.update({name: _elementwise(kind) for name, kind in _SAME.items()})


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _identity(graph: Graph, equation: Any, *values: Value) -> Any:
    return values[0] if len(values) == 1 else list(values)


@rule("square")
def _square(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.add("Mul", x, x)


@rule("integer_pow")
def _integer_pow(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.add("Pow", x, np.array(equation.params["y"], equation.invars[0].aval.dtype))


@rule("rsqrt")
def _rsqrt(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.add("Reciprocal", graph.add("Sqrt", x))


@rule("rem")
def _rem(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return graph.add("Mod", x, y, fmod=1)


@rule("ne")
def _ne(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return graph.add("Not", graph.add("Equal", x, y))


@rule("and", "or", "not")
def _logical(graph: Graph, equation: Any, *values: Value) -> Value:
    if equation.invars[0].aval.dtype != bool:
        refuse(equation, "of numbers")
    return graph.add(equation.primitive.name.title(), *values)


@rule("select_n")
def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if equation.invars[0].aval.dtype != bool or len(cases) != 2:
        refuse(equation, "with more than two cases")
    return graph.add("Where", which, cases[1], cases[0])


@rule("clamp")
def _clamp(graph: Graph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.add("Min", graph.add("Max", x, low), high)


@rule("convert_element_type")
def _convert(graph: Graph, equation: Any, x: Value) -> Value:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype.name not in ("float32", "int32", "int64", "uint8", "bool"):
        refuse(equation, f"to {dtype.name}")
    return graph.cast(x, dtype)


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.add("Reshape", x, graph.shape(equation.outvars[0].aval.shape))


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, equation: Any, x: Value, *sizes: Value) -> Value:
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    aligned: list[Any] = [1] * len(after)
    for size, dimension in zip(before, equation.params["broadcast_dimensions"], strict=True):
        aligned[dimension] = size
    if tuple(aligned) != tuple(before):
        x = graph.add("Reshape", x, graph.shape(aligned))
    return x if tuple(aligned) == tuple(after) else graph.add("Expand", x, graph.shape(after))


@rule("transpose")
def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    return _permuted(graph, x, equation.params["permutation"])


@rule("concatenate")
def _concatenate(graph: Graph, equation: Any, *values: Value) -> Value:
    return graph.add("Concat", *values, axis=int(equation.params["dimension"]))


@rule("stack")
def _stack(graph: Graph, equation: Any, *values: Value) -> Value:
    axis = int(equation.params["axis"])
    parts = [graph.add("Unsqueeze", value, ints(axis)) for value in values]
    return graph.add("Concat", *parts, axis=axis)


@rule("slice")
def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    params, shape = equation.params, equation.invars[0].aval.shape
    strides = params["strides"] or (1,) * len(shape)
    every = zip(params["start_indices"], params["limit_indices"], strides, shape, strict=True)
    parts = [
        (axis, start, end, stride)
        for axis, (start, end, stride, size) in enumerate(every)
        if (start, stride) != (0, 1) or end != size
    ]
    if not parts:
        return x
    axes, starts, ends, steps = (ints(*column) for column in zip(*parts, strict=True))
    return graph.add("Slice", x, starts, ends, axes, steps)


@rule("rev")
def _rev(graph: Graph, equation: Any, x: Value) -> Value:
    axes = equation.params["dimensions"]
    count, first = len(axes), np.iinfo(np.int64).min
    backwards = ints(*[-1] * count)
    return graph.add("Slice", x, backwards, ints(*[first] * count), ints(*axes), backwards)


@rule("pad")
def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    config = equation.params["padding_config"]
    if any(interior for _, _, interior in config) or any(min(c[:2]) < 0 for c in config):
        refuse(equation, "between elements, or negative")
    return graph.add("Pad", x, ints(*(c[0] for c in config), *(c[1] for c in config)), value)


@rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(graph: Graph, equation: Any, x: Value) -> Value:
    kind = "Reduce" + equation.primitive.name.split("_")[1].title()
    return graph.add(kind, x, ints(*equation.params["axes"]), keepdims=0)


@rule("argmax")
def _argmax(graph: Graph, equation: Any, x: Value) -> Value:
    (axis,) = equation.params["axes"]
    return graph.cast(graph.add("ArgMax", x, axis=int(axis), keepdims=0), np.int32)


@rule("top_k")
def _top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    axis = equation.params.get("axis", -1)
    values, places = graph.add("TopK", x, ints(equation.params["k"]), outputs=2, axis=int(axis))
    return [values, graph.cast(places, np.int32)]


@rule("dot_general")
def _dot(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (contracted, batched) = equation.params["dimension_numbers"]
    rank = len(equation.invars[0].aval.shape)
    of_matrix = len(equation.invars[1].aval.shape) == 2
    if not of_matrix or contracted != ((rank - 1,), (0,)) or batched != ((), ()):
        refuse(equation, f"over dimensions {contracted}")
    return graph.add("MatMul", x, y)


@rule("conv_general_dilated")
def _conv(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    params = equation.params
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(s != 1 for s in params["lhs_dilation"]):
        refuse(equation, "with a dilated input or batch groups")
    # the specs name where batch (or outputs), channels and space stand; ONNX has them in this order
    x, kernel = _permuted(graph, x, numbers.lhs_spec), _permuted(graph, kernel, numbers.rhs_spec)
    padding = params["padding"]
    out = graph.add(
        "Conv",
        x,
        kernel,
        strides=list(params["window_strides"]),
        pads=[p[0] for p in padding] + [p[1] for p in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return _permuted(graph, out, np.argsort(numbers.out_spec))


@rule("gather")
def _gather(graph: Graph, equation: Any, x: Value, places: Value) -> Value:
    """Whole slices at given places: GatherND, with the indexed dimensions moved to the front."""
    params = equation.params
    numbers, shape = params["dimension_numbers"], equation.invars[0].aval.shape
    indexed = [int(d) for d in numbers.start_index_map]
    batching = [int(d) for d in numbers.operand_batching_dims]
    rest = [d for d in range(len(shape)) if d not in indexed + batching]
    places_batching = [int(d) for d in numbers.start_indices_batching_dims]
    if params["mode"] is not GatherScatterMode.PROMISE_IN_BOUNDS:
        refuse(equation, "of places that may be out of bounds")
    if (
        sorted(indexed) != sorted(int(d) for d in numbers.collapsed_slice_dims)
        or places_batching != list(range(len(batching)))
        or any(params["slice_sizes"][d] != shape[d] for d in rest)
    ):
        refuse(equation, "of parts of slices")
    x = _permuted(graph, x, batching + indexed + rest)
    out = graph.add("GatherND", x, _cast_places(graph, places), batch_dims=len(batching))
    # now the places' dimensions come first, then those of the slices
    rank = len(equation.outvars[0].aval.shape)
    offsets = [int(d) for d in numbers.offset_dims]
    others = [d for d in range(rank) if d not in offsets]
    return _permuted(graph, out, np.argsort(others + offsets))


def _cast_places(graph: Graph, places: Value) -> Value:
    if isinstance(places, np.ndarray):
        return places.astype(np.int64)
    return graph.cast(places, np.int64)


def _permuted(graph: Graph, x: Value, order: Any) -> Value:
    order = [int(d) for d in order]
    if order == sorted(order):
        return x
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x.transpose(order))
    return graph.add("Transpose", x, perm=order)
