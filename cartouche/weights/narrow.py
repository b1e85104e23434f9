"""A graph retyped to bfloat16: the weights take half the memory, on their way into the engine too.

OpenVINO computes a float32 graph in bfloat16 where it is asked to, but first widens what is stored in half precision,
and keeps that beside what it computes with. In a graph that is of bfloat16 from the beginning nothing is widened.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EXACT = ("timestep", "time_ids")
"""Inputs whose sinusoids need all digits; what follows the first weight behind them is narrow."""
WIDE_BESIDE = {"Interpolate"}
"""Operations of which only the first input is numbers of the net."""


def narrow(model: Any, held: list[np.ndarray]) -> bool:
    """Retype openvino's model in place; returns whether all of its weights are bfloat16 now.

    held: takes the new weights, which openvino shares and does not keep alive.
    """
    from openvino import Type, opset13

    for node in model.get_parameters():
        if node.get_output_element_type(0) == Type.f32 and node.get_friendly_name() not in EXACT:
            readers = node.output(0).get_target_inputs()
            short = opset13.convert(node, "bf16").output(0)
            for reader in readers:
                reader.replace_source_output(short)
    known: set[tuple[str, int]] = set()
    for node in model.get_ordered_ops():
        _retype(node, known, held)
    model.validate_nodes_and_infer_types()
    weights = [node for node in model.get_ops() if node.get_type_name() == "Constant" and _is_weight(node.output(0))]
    return all(node.get_output_element_type(0) == Type.bf16 for node in weights)


def _retype(node: Any, known: set[tuple[str, int]], held: list[np.ndarray]) -> None:
    """Make one operation narrow if anything that it reads is. known: the outputs that are narrow already."""
    from openvino import Type, opset13

    kind = node.get_type_name()
    if kind in ("Constant", "Parameter"):
        return
    if kind == "ShapeOf":  # of a bias, say: its shape is all that is asked for, and yet it would stay as it was
        if _is_weight(source := node.input(0).get_source_output()):
            node.input(0).replace_source_output(_short(source, held))
        return
    if kind == "Convert":
        if node.get_output_element_type(0) == Type.bf16:
            known.add((node.get_name(), 0))
        return
    sources = [(one, one.get_source_output()) for one in node.inputs()]
    narrow = [_is(source, known) or _is_weight(source) for _, source in sources]
    if not any(narrow):
        return
    if kind == "Result":
        node.input(0).replace_source_output(opset13.convert(sources[0][1], "f32").output(0))
        return
    for reader, source in sources[:1] if kind in WIDE_BESIDE else sources:
        if not _is(source, known) and source.get_element_type() == Type.f32:
            reader.replace_source_output(_short(source, held))
    known.update((node.get_name(), i) for i in range(len(node.outputs())))


def _is(source: Any, known: set[tuple[str, int]]) -> bool:
    return (source.get_node().get_name(), source.get_index()) in known


def _stored(source: Any) -> Any:
    """The constant behind an output, perhaps widened, or None."""
    node = source.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _is_weight(source: Any) -> bool:
    stored = _stored(source)
    return stored is not None and "." in stored.get_friendly_name() and source.get_element_type().is_real()


def _short(source: Any, held: list[np.ndarray]) -> Any:
    """The output in bfloat16: a constant rounded now, anything else by an operation."""
    from openvino import Tensor, Type, opset13
    from openvino.op import Constant

    stored = _stored(source)
    if stored is None:
        return opset13.convert(source, "bf16").output(0)
    if stored.get_output_element_type(0) == Type.bf16:
        return stored.output(0)
    held.append(rounded(stored.get_data(dtype=np.float32)))
    made = Constant(Tensor(held[-1], held[-1].shape, Type.bf16), shared_memory=True)
    made.set_friendly_name(stored.get_friendly_name())
    return made.output(0)


def rounded(array: np.ndarray) -> np.ndarray:
    """float32 as the bits of the nearest bfloat16, the even one of two: uint16 of the same shape."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)
