"""An order of a graph's nodes that depends on the graph alone.

ONNX Runtime puts nodes that change the layout of a tensor in the order of addresses in memory, so
that the same file, compiled twice, gave kernels in another order, and with them another prediction:
by 2 % where a kernel found its input in another state of the caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["depth_first"]


def depth_first(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes depth first: all that an input needs, then what the next one needs.

    What no output needs comes last, as it was. Nodes of a graph with inner graphs (loops, branches)
    stay as they are, since these read tensors that no node names.

    Args:
        graph: its nodes in any order.
    """
    nodes = list(graph.node)
    if any(attribute.HasField("g") or attribute.graphs for n in nodes for attribute in n.attribute):
        return nodes
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    order: list[int] = []
    begun: set[int] = set()
    last = [producer[value.name] for value in graph.output if value.name in producer]
    stack = [(index, 0) for index in [*reversed(range(len(nodes))), *reversed(last)]]
    while stack:
        index, place = stack.pop()
        if place == 0:
            if index in begun:
                continue
            begun.add(index)
        if place == len(nodes[index].input):
            order.append(index)
            continue
        stack.append((index, place + 1))
        needed = producer.get(nodes[index].input[place])
        if needed is not None and needed not in begun:
            stack.append((needed, 0))
    return [nodes[index] for index in order]
