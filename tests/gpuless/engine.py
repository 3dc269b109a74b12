"""Backward passes in Python: torch's own engine asks the driver of a GPU for its streams, and there is none.

Nodes are called in the order in which torch calls them, on the sums of what arrives at them. What a node has saved is
let go once it was called, as torch does, so that memory falls as it does on a GPU.
"""

import heapq
import sys
from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Node = Any  # of the graph
_ALONE = 3  # references to a gradient that nobody else holds: of the buffer, of a variable, of `getrefcount`


class Engine:
    """In place of `Variable._execution_engine`."""

    def __init__(self) -> None:
        self._saved: dict[int, Tensor] = {}
        self._number = 0

    def keeping(self) -> AbstractContextManager[None]:
        """Around forward passes whose saved tensors the engine shall let go."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._saved.pop)

    def _pack(self, tensor: Tensor) -> int:
        self._number += 1
        self._saved[self._number] = tensor
        return self._number

    @torch.no_grad()
    def run_backward(
        self,
        tensors: tuple[Tensor, ...],
        grads: tuple[Tensor, ...],
        keep_graph: bool,
        create_graph: bool,
        inputs: tuple[Tensor, ...] = (),
        allow_unreachable: bool = True,
        **_: bool,
    ) -> tuple[Tensor | None, ...]:
        """As torch's, without second derivatives."""
        assert not create_graph
        assert not keep_graph
        waiting = _dependencies([_place(tensor)[0] for tensor in tensors])
        asked = [_place(tensor) for tensor in inputs]
        found: dict[tuple[Node, int], Tensor] = {}
        arrived: dict[Node, dict[int, Tensor]] = defaultdict(dict)
        for tensor, grad in zip(tensors, grads, strict=True):
            node, number = _place(tensor)
            arrived[node][number] = grad
        ready = [(-_order(node), id(node), node) for node in arrived if not waiting[node]]
        heapq.heapify(ready)
        while ready:
            node = heapq.heappop(ready)[2]
            given = arrived.pop(node)
            found |= {(node, number): given[number] for other, number in asked if other is node and number in given}
            if hasattr(node, "variable"):
                if not inputs:
                    _accumulate(node.variable, given[0])
                continue
            if inputs and all(place in found for place in asked):
                break
            results = _call(node, given)
            del given
            for (following, number), result in zip(node.next_functions, results, strict=False):
                if following is None:
                    continue
                waiting[following] -= 1
                if result is not None:
                    _add(arrived[following], number, _fitting(result, following, number))
                if not waiting[following] and following in arrived:
                    heapq.heappush(ready, (-_order(following), id(following), following))
            del results
        return tuple(found.get(place) for place in asked)


def _place(tensor: Tensor) -> tuple[Node, int]:
    """The node at which a tensor's gradient arrives, and its number there."""
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _order(node: Node) -> int:
    return sys.maxsize if hasattr(node, "variable") else node._sequence_nr()


def _dependencies(roots: list[Node]) -> dict[Node, int]:
    """How many gradients each node waits for; nodes as keys stay alive."""
    waiting: dict[Node, int] = dict.fromkeys(roots, 0)
    todo = list(waiting)
    while todo:
        for following, _ in todo.pop().next_functions:
            if following is not None:
                if following not in waiting:
                    waiting[following] = 0
                    todo.append(following)
                waiting[following] += 1
    return waiting


def _call(node: Node, given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    arguments = [given.pop(number, None) for number in range(max(given) + 1)]
    call = node.apply if isinstance(node, BackwardCFunction) else node
    results = call(*arguments)
    return results if isinstance(results, tuple) else (results,)


def _fitting(gradient: Tensor, node: Node, number: int) -> Tensor:
    """A gradient in the shape and type of what it is a gradient of, as torch brings it there."""
    wanted = node._input_metadata[number]
    assert gradient.device == wanted.device, f"{node}: gradient on {gradient.device}, expected {wanted.device}"
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient.to(wanted.dtype)


def _add(arrived: dict[int, Tensor], number: int, result: Tensor) -> None:
    if number not in arrived:
        arrived[number] = result
        return
    before = arrived.pop(number)
    arrived[number] = before.add_(result) if sys.getrefcount(before) < _ALONE else before + result


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = gradient.detach()
    else:
        leaf.grad += gradient
