"""HBM traffic of a compiled TPU program, counted from its optimised HLO text.

Every instruction reads its operands and writes its result, unless they are in VMEM (memory space
``S(1)``). An asynchronous copy is counted once. What a fusion computes inside stays on the chip.
XLA's own count ("bytes accessed") includes VMEM, so it is not a lower bound.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency", "while", "conditional", "call",
}  # fmt: skip
"""These move nothing themselves; the last three run other computations."""
_SLICES = {"slice", "dynamic-slice", "gather"}
_OF_A_STEP = ("ops/", "models/", "training/", "evaluation/")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
_TOKEN = re.compile(r"%([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    """With layout; a tuple has several arrays."""
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    """The text between the parentheses."""

    def called(self, role: str) -> str | None:
        """The computation that the attribute ``role`` names, such as ``calls`` or ``body``."""
        match = re.search(rf"\b{role}=%?([\w.-]+)", self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program, each by instruction name in its order of execution."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    frames: dict[int, tuple[str, str, int]]
    """File, function and parent (0: none) of each stack frame."""


def parse(text: str) -> Module:
    """Reads ``compiled.as_text()``; raises ValueError without an entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
            if head:
                current = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
            elif line.startswith("}"):
                current = None
        elif match := _LINE.match(line):
            current[match[1]] = _instruction(match[1], match[2])
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    return Module(computations, entry, _frames(text))


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    arguments = rest[start + 1 : stop]
    operands = tuple(_TOKEN.findall(arguments))
    return Instruction(name, shape, rest[:start], operands, rest[stop + 1 :], arguments)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return start + match.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _frames(text: str) -> dict[int, tuple[str, str, int]]:
    """The tables of file names, functions, places and frames at the head of the text."""
    tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
    title = ""
    for line in text.splitlines():
        if line.startswith(("ENTRY", "%")):
            break
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            title = line
        elif title and (match := re.match(r"(\d+) (.*)", line)):
            tables[title][int(match[1])] = match[2].strip('"')

    def number(row: str, field: str) -> int:
        match = re.search(rf"{field}=(\d+)", row)
        return int(match[1]) if match else 0

    # 0 stands for none where frame 1, an outermost one, does not name itself
    first = number(tables["StackFrames"].get(1, ""), "parent_frame_id")
    frames = {}
    for key, row in tables["StackFrames"].items():
        place = tables["FileLocations"].get(number(row, "file_location_id"), "")
        file = tables["FileNames"].get(number(place, "file_name_id"), "")
        function = tables["FunctionNames"].get(number(place, "function_name_id"), "")
        frames[key] = file, function, number(row, "parent_frame_id") - first
    return frames


def array_bytes(kind: str, dimensions: str, layout: str | None) -> int:
    """Bytes of an array in memory, with the padding of its tiles.

    ``layout`` is minor to major, then the tiles: ``1,0:T(8,128)(2,1)S(1)``. A tile covers the
    most minor dimensions, which are padded to whole tiles; later tiles only reorder.
    """
    if kind in _BITS:
        bits = _BITS[kind]
    else:
        match = re.match(r"[a-z]+(\d+)", kind)
        bits = int(match[1]) if match else 32
    sizes = [int(d) for d in dimensions.split(",") if d]
    order, _, tiles = (layout or "").partition(":")
    minor_to_major = [int(d) for d in order.split(",") if d] or list(range(len(sizes)))[::-1]
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if tile:
        padded = [int(d) for d in tile[1].split(",")][::-1]
        for dimension, multiple in zip(minor_to_major, padded, strict=False):
            sizes[dimension] = -(-sizes[dimension] // multiple) * multiple
    return math.prod(sizes) * bits // 8


def hbm_bytes(shape: str) -> int:
    """Bytes of the arrays of a shape that are in HBM: not in another memory space."""
    return sum(
        array_bytes(kind, dimensions, layout)
        for kind, dimensions, layout in _ARRAY.findall(shape)
        if not re.search(r"S\([1-9]\d*\)", layout)
    )


def _read_by_slices(operand: int, fused: dict[str, Instruction]) -> int | None:
    """Bytes that a fusion reads from an operand if it only reads slices; None if it reads all."""
    parameter = next(
        (
            i.name
            for i in fused.values()
            if i.opcode == "parameter" and i.arguments.strip() == str(operand)
        ),
        None,
    )
    users = [i for i in fused.values() if parameter in i.operands]
    if not users or any(u.opcode not in _SLICES or u.operands[0] != parameter for u in users):
        return None
    return sum(array_bytes(*_ARRAY.findall(u.shape)[0]) for u in users)


def instruction_bytes(instruction: Instruction, module: Module, computation: str) -> int:
    """Bytes that an instruction reads from HBM and writes to it."""
    here = module.computations[computation]
    opcode = instruction.opcode
    if opcode in _FREE:
        return 0
    operands = [here[name].shape for name in instruction.operands if name in here]
    if opcode.endswith("-done"):  # the start counts what is read, this what is written
        return hbm_bytes(instruction.shape)
    if opcode in _SLICES:
        indices = sum(map(hbm_bytes, operands[1:]))
        taken = array_bytes(*_ARRAY.findall(instruction.shape)[0])
        return indices + min(hbm_bytes(operands[0]), taken) + hbm_bytes(instruction.shape)
    if opcode == "dynamic-update-slice":  # in place: reads the update and writes it
        return 2 * hbm_bytes(operands[1])
    if opcode in ("slice-start", "dynamic-slice-start"):  # ((source), slice, context)
        _, taken, *_ = _ARRAY.findall(instruction.shape)
        return min(hbm_bytes(operands[0]), array_bytes(*taken))
    read = 0
    fused = module.computations.get(instruction.called("calls") or "", {})
    for position, shape in enumerate(operands):
        size = hbm_bytes(shape)
        part = _read_by_slices(position, fused) if size and opcode == "fusion" else None
        read += size if part is None else min(size, part)
    return read if opcode.endswith("-start") else read + hbm_bytes(instruction.shape)


def _executed(module: Module, computation: str, times: int) -> Iterator[tuple[str, str, int]]:
    """(computation, instruction, number of executions) of all that can touch HBM.

    A loop whose length depends on the data counts once, and so does each branch of a condition.
    """
    for instruction in module.computations[computation].values():
        yield computation, instruction.name, times
        if instruction.opcode == "while":
            count = re.search(r'known_trip_count"?:\{"?n"?:"(\d+)"', instruction.attributes)
            body = instruction.called("body")
            if body:
                yield from _executed(module, body, times * (int(count[1]) if count else 1))
        elif instruction.opcode == "call":
            yield from _executed(module, instruction.called("to_apply"), times)
        elif instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            for branch in _TOKEN.findall(branches[1]) if branches else ():
                yield from _executed(module, branch, times)


def traffic(module: Module) -> collections.Counter[str]:
    """Bytes of HBM traffic of one run of the program, by source (`source_of`)."""
    bytes_of: collections.Counter[str] = collections.Counter()
    for computation, name, times in _executed(module, module.entry, 1):
        instruction = module.computations[computation][name]
        if size := instruction_bytes(instruction, module, computation):
            bytes_of[source_of(instruction, module, computation)] += times * size
    return bytes_of


def source_of(instruction: Instruction, module: Module, computation: str) -> str:
    """What an instruction belongs to: a part of the network and its pass, or a function.

    XLA names a fusion after one of the operations in it.
    """
    here = module.computations[computation]
    seen = set()
    while True:
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', instruction.attributes)
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if match or not instruction.operands or instruction.name in seen:
            break
        seen.add(instruction.name)  # XLA's own copies have no name: take what they copy
        following = here.get(instruction.operands[0])
        if following is None:
            break
        instruction = following
    name = match[1] if match else ""
    if network := re.search(r"\b[A-Z]\w*\)*/(.+)", name):
        parts = [p for p in network[1].split("/") if "(" not in p and "remat" not in p]
        parts = [re.sub(r"_(block\d+|conv|norm)$", "", p) for p in parts[:-1] if p != "checkpoint"]
        depth = 2 if parts[:1] == ["backbone"] else 1
        direction = "backward" if "transpose(" in name else "forward"
        return f"{'/'.join(parts[:depth]) or 'network'}, {direction}"
    if name.startswith("state."):
        return "parameters and optimiser state"
    if name.startswith("batch."):
        return "input batch"
    return (_function(int(frame[1]), module) if frame else "") or "other"


def _function(frame: int, module: Module) -> str:
    """The function of this package that the step calls, by its stack frame; else the step's own."""
    calls = []
    while frame in module.frames and len(calls) < 100:
        file, function, frame = module.frames[frame]
        path = file.rpartition("retina_jax/")[2].removesuffix(".py")
        if path.startswith(_OF_A_STEP) and path != file:
            calls.append((path, function.rpartition(".")[2]))
    below = [call for call in calls if not call[0].endswith("step")] or calls[:1]
    return " ".join(below[-1]) if below else ""
