"""Builds an ONNX graph: nodes, constants, and shapes with a batch of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from retina_jax.errors import UserError

Value = str | np.ndarray
"""A tensor of the graph by name, or a constant that no node has needed yet."""


class Graph:
    """Nodes and initializers under construction; names are numbered."""

    def __init__(self, opset: int):
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._batch: Any = None
        self._batch_size = ""

    def input(self, name: str, dtype: Any, shape: Sequence[Any]) -> str:
        """Adds an input; if its first dimension is not a number, the batch may have any size."""
        if not _is_number(shape[0]):
            self._batch = shape[0]
            self._batch_size = self._batch_size or self.add("Shape", name, start=0, end=1)
        self._inputs.append(self._described(name, dtype, shape))
        return name

    def output(self, value: Value, name: str, dtype: Any, shape: Sequence[Any]) -> None:
        self._nodes.append(helper.make_node("Identity", [self.name(value)], [name]))
        self._outputs.append(self._described(name, dtype, shape))

    def _described(self, name: str, dtype: Any, shape: Sequence[Any]) -> onnx.ValueInfoProto:
        dims = [int(size) if _is_number(size) else "batch" for size in shape]
        return helper.make_tensor_value_info(name, element_type(dtype), dims)

    def add(self, kind: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or the names of several."""
        names = [f"{kind.lower()}_{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(
            helper.make_node(kind, [self.name(value) for value in inputs], names, **attributes)
        )
        return names[0] if outputs == 1 else names

    def name(self, value: Value) -> str:
        """The name of a value; a constant becomes an initializer, once."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._known:
            self._known[key] = f"constant_{len(self._constants)}"
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), self._known[key])
            self._constants.append(tensor)
        return self._known[key]

    def shape(self, sizes: Sequence[Any]) -> Value:
        """A shape as a value; a batch of any size is read from the input."""
        if all(map(_is_number, sizes)):
            return ints(*sizes)
        for size in sizes:
            if not _is_number(size) and size != self._batch:
                raise UserError(
                    f"--format=onnx cannot express a dimension of {size}; set --batch-size=1"
                )
        parts = [ints(size) if _is_number(size) else self._batch_size for size in sizes]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def cast(self, value: Value, dtype: Any) -> str:
        return self.add("Cast", value, to=element_type(dtype))

    def model(self, name: str, notes: dict[str, str]) -> onnx.ModelProto:
        """The checked model, with ``notes`` as its metadata."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=self._constants
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            producer_name="retina_jax",
            ir_version=8,  # of the first runtimes with this operator set
        )
        helper.set_model_props(model, notes)
        onnx.checker.check_model(model)
        return model


def ints(*values: Any) -> np.ndarray:
    """int64, which ONNX requires for shapes, axes and indices."""
    return np.array([int(value) for value in values], np.int64)


def element_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _is_number(size: Any) -> bool:
    return isinstance(size, (int, np.integer))
