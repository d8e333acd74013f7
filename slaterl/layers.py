"""Linear layers with ReLU between them. Training spends most of its time in their products."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

BLOCK = 1 << 19  # numbers in the widest layer of a block of rows: 2 MB, which a second-level cache holds
SMALL = 1 << 20  # below this number of multiplications, the call costs more than the product


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL, which torch calls by default.

    MKL has AVX-512 kernels for Intel's processors alone. On AMD's it falls back to AVX2 and takes twice as long.
    """
    vendor = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and vendor.is_file()
        and "AuthenticAMD" in vendor.read_text(encoding="utf-8")
    )


@functools.cache
def products_by() -> str:
    """Name what multiplies matrices on this processor, such as "mkl 2024.2, AVX512, oneDNN". Last bits depend on it."""
    built = torch.__config__.show()
    name = re.search(r"BLAS_INFO=(\w+)", built)
    version = re.search(r"Math Kernel Library Version ([\d.]+)", built)
    library = " ".join([name[1] if name else "unknown", *([version[1]] if version else [])])
    return ", ".join([library, torch.backends.cpu.get_cpu_capability(), *(["oneDNN"] if onednn_is_faster() else [])])


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """Return rows @ weight.T + bias, with `relu` its positive part: [R, I], [O, I] and [O] -> [R, O].

    The shapes alone decide who multiplies, because results must not depend on anything that a resumed run lacks. But a
    graph that torch.export records is for any number of rows, so torch always multiplies there.
    """
    large = not torch.compiler.is_compiling() and rows.shape[0] * rows.shape[1] * weight.shape[0] >= SMALL
    if large and rows.device.type == "cpu" and rows.dtype == torch.float32 and onednn_is_faster():
        rows, weight = _without_gaps(rows), _without_gaps(weight)
        # its own "relu" would turn NaN into 0, which hides that training diverges
        result = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    else:
        result = linear(rows, weight, bias)
    return result.relu_() if relu else result


def in_blocks(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split [R, ...] into blocks of rows that each become `width` numbers, for the second-level cache.

    A graph that torch.export records has one block, because it is for any number of rows.
    """
    return (rows,) if torch.compiler.is_compiling() else rows.split(max(1, BLOCK // width))


def first_derivative_only(name: str) -> None:
    """Raise RuntimeError in a backward pass that is to be differentiated itself (create_graph=True).

    Torch's `once_differentiable` would return a gradient without a graph if the incoming one has none. A gradient
    penalty would then be lost without an error.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: no second derivative; MLP.twice_differentiable has one, see docs/extending.md")


def _without_gaps(matrix: Tensor) -> Tensor:
    """Copy a matrix that is neither contiguous nor the transpose of one: oneDNN has no fast code for it."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def layers(inputs: Sequence[Tensor], parameters: Sequence[Tensor], relu_last: bool = False) -> Tensor:
    """Apply linear layers with ReLU between them to inputs joined along their last axis: n * [..., I_n] -> [..., O].

    Args:
        inputs: with equal leading axes; n is at least 1. Only those that need a gradient cost the time of one.
        parameters: weight [O, I] and bias [O] of each layer in turn.
        relu_last: whether a ReLU also follows the last layer.
    """
    assert all(part.shape[:-1] == inputs[0].shape[:-1] for part in inputs)
    rows = [part.reshape(-1, part.shape[-1]) for part in inputs]
    if torch.is_grad_enabled():
        outputs = _Layers.apply(len(rows), relu_last, *rows, *parameters)
    else:
        blocks = _blocks(_joined(rows, 1), parameters)
        outputs = _joined([_through(block, parameters, relu_last)[-1] for block in blocks], 0)
    return outputs.view(*inputs[0].shape[:-1], outputs.shape[1])


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


def _blocks(rows: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return in_blocks(rows, max(weight.shape[0] for weight in parameters[::2]))


def _through(rows: Tensor, parameters: Sequence[Tensor], relu_last: bool) -> list[Tensor]:
    """Return the rows as they enter and leave each layer."""
    passed = [rows]
    last = len(parameters) // 2 - 1
    for layer in range(last + 1):
        weight, bias = parameters[2 * layer : 2 * layer + 2]
        passed.append(product(passed[-1], weight, bias, relu=relu_last or layer < last))
    return passed


class _Layers(torch.autograd.Function):
    """The layers with a hand-written backward pass.

    At a few thousand rows the time goes into memory rather than arithmetic. So forward and backward take one block of
    rows through all layers before the next, and masks are applied in place.
    """

    @staticmethod
    def forward(ctx: Any, inputs: int, relu_last: bool, *tensors: Tensor) -> Tensor:
        """Take that many inputs [R, I_n], then the parameters."""
        ctx.inputs, ctx.relu_last = inputs, relu_last
        ctx.widths = [part.shape[1] for part in tensors[:inputs]]
        rows, parameters = _joined(tensors[:inputs], 1), tensors[inputs:]
        ctx.parameters = len(parameters)
        passed = [_through(block, parameters, relu_last) for block in _blocks(rows, parameters)]
        inner = [part for block in passed for part in block[1 : len(block) - (not relu_last)]]
        ctx.save_for_backward(rows, *parameters, *inner)
        return _joined([block[-1] for block in passed], 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only("layers")
        rows, *saved = ctx.saved_tensors
        parameters, inner = saved[: ctx.parameters], saved[ctx.parameters :]
        weights = parameters[::2]
        last = len(weights) - 1
        per_block = last + ctx.relu_last
        of_inputs, of_parameters = ctx.needs_input_grad[2 : 2 + ctx.inputs], ctx.needs_input_grad[2 + ctx.inputs :]
        sums: list[Tensor | None] = [None] * ctx.parameters
        found: list[list[Tensor]] = [[] for _ in of_inputs]
        columns = [_without_gaps(part.t()) for part in weights[0].split(ctx.widths, 1)]  # here, not in every block
        blocks = _blocks(rows, parameters)
        for number, (block, gradient) in enumerate(zip(blocks, grad.split(len(blocks[0])), strict=True)):
            passed = [block, *inner[number * per_block : (number + 1) * per_block]]
            if ctx.relu_last:
                gradient = torch.ops.aten.threshold_backward(gradient, passed.pop(), 0)
            for layer in range(last, -1, -1):
                if of_parameters[2 * layer]:
                    _add(sums, 2 * layer, outer(gradient, passed[layer]))
                if of_parameters[2 * layer + 1]:
                    _add(sums, 2 * layer + 1, gradient.sum(0))
                if layer:
                    gradient = product(gradient, weights[layer].t())
                    torch.ops.aten.threshold_backward.grad_input(gradient, passed[layer], 0, grad_input=gradient)
            for part, needed, weight in zip(found, of_inputs, columns, strict=True):
                if needed:
                    part.append(product(gradient, weight))
        return None, None, *(_joined(part, 0) if part else None for part in found), *sums


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Return left.T @ right, [R, O] and [R, I] -> [O, I]. Measured: oneDNN is slow if the result has few columns."""
    if right.shape[1] <= 64 < left.shape[1]:
        return product(right.t(), left.t()).t()
    return product(left.t(), right.t())


def _add(sums: list[Tensor | None], place: int, part: Tensor) -> None:
    total = sums[place]
    sums[place] = part if total is None else total.add_(part)
