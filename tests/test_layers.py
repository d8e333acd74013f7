"""Layers with a hand-written backward pass, against torch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from slaterl import layers as module
from slaterl.layers import layers, onednn_is_faster, outer, product
from slaterl.seeds import stream


def drawn(*shape: int, name: str = "numbers") -> Tensor:
    return torch.randn(shape, generator=stream(0, f"{name} {shape}"), dtype=torch.float64)


def by_torch(inputs: list[Tensor], parameters: list[Tensor], relu_last: bool) -> Tensor:
    result = torch.cat(inputs, dim=-1)
    for layer in range(0, len(parameters), 2):
        result = linear(result, *parameters[layer : layer + 2])
        if relu_last or layer + 2 < len(parameters):
            result = result.relu()
    return result


@pytest.fixture(params=[1 << 19, 100], ids=["one block", "several blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", request.param)  # 100 numbers: 11 rows in blocks of 7


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("widths", [(5, 3), (5, 14, 3), (5, 14, 9, 1)])
@pytest.mark.parametrize("relu_last", [False, True])
@pytest.mark.parametrize("frozen", ["", "parameters", "first input", "second input", "a bias"])
def test_values_and_gradients_are_those_of_torch(widths: tuple[int, ...], relu_last: bool, frozen: str) -> None:
    inputs = [drawn(11, 2, name="state"), drawn(11, 3, name="action")]
    parameters = [
        drawn(*shape, name=f"layer {number}")
        for number, (before, after) in enumerate(itertools.pairwise(widths))
        for shape in ((after, before), (after,))
    ]
    for part, name in zip(inputs, ("first input", "second input"), strict=True):
        part.requires_grad_(frozen != name)
    for number, part in enumerate(parameters):
        part.requires_grad_(frozen != "parameters" and not (frozen == "a bias" and number == 1))
    learned = [part for part in (*inputs, *parameters) if part.requires_grad]
    expected = by_torch(inputs, parameters, relu_last)
    found = layers(inputs, parameters, relu_last)
    torch.testing.assert_close(found, expected)
    grad = drawn(*expected.shape, name="gradient")
    gradients = torch.autograd.grad(expected, learned, grad)
    for own, of_torch in zip(torch.autograd.grad(found, learned, grad), gradients, strict=True):
        torch.testing.assert_close(own, of_torch)
    with torch.no_grad():
        assert torch.equal(layers(inputs, parameters, relu_last), found)


def test_leading_axes_stay() -> None:
    parameters = [drawn(7, 4), drawn(7)]
    assert layers([drawn(2, 3, 4)], parameters).shape == (2, 3, 7)
    assert torch.equal(layers([drawn(2, 3, 4)], parameters), linear(drawn(2, 3, 4), *parameters))


def test_inputs_have_the_same_leading_axes() -> None:
    with pytest.raises(AssertionError):
        layers([drawn(2, 3, 4), drawn(3, 2, 3)], [drawn(7, 7), drawn(7)])


def test_nan_stays_nan_in_large_products() -> None:
    """Training stops where a loss is not finite, and oneDNN's own ReLU would hide it."""
    rows, weight = torch.ones(300, 80), torch.ones(96, 80)
    rows[7] = torch.nan
    assert rows.numel() * len(weight) > module.SMALL
    assert int(product(rows, weight, relu=True).isnan().sum()) == 96
    assert layers([rows], [weight, torch.zeros(96), torch.ones(1, 96), torch.zeros(1)]).isnan().sum() == 1


@pytest.mark.parametrize("penalised", [False, True])
def test_a_gradient_penalty_is_refused(penalised: bool) -> None:
    """Also where the incoming gradient is a constant, which torch's once_differentiable does not notice."""
    inputs = drawn(5, 4).requires_grad_()
    values = layers([inputs], [drawn(6, 4), drawn(6), drawn(1, 6), drawn(1)])
    if penalised:
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(values.sum(), inputs, create_graph=True)
    else:
        torch.autograd.grad(values.sum(), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_products_are_those_of_torch(dtype: torch.dtype) -> None:
    """Whoever multiplies: with a bias, positive parts, transposed factors and factors with gaps."""
    rows, weight, bias = (drawn(*shape).to(dtype) for shape in ((300, 80), (96, 80), (96,)))
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert rows.numel() * len(weight) > module.SMALL
    torch.testing.assert_close(product(rows, weight, bias), linear(rows, weight, bias), **close)
    torch.testing.assert_close(product(rows, weight, relu=True), linear(rows, weight).relu(), **close)
    torch.testing.assert_close(product(rows, drawn(80, 96).to(dtype).t()), rows @ drawn(80, 96).to(dtype), **close)
    wide = drawn(96, 120).to(dtype)
    torch.testing.assert_close(product(rows, wide[:, :80], bias), linear(rows, wide[:, :80], bias), **close)
    torch.testing.assert_close(outer(rows, linear(rows, weight)), rows.t() @ linear(rows, weight), **close)
    torch.testing.assert_close(
        outer(linear(rows, weight), rows[:, :40]), linear(rows, weight).t() @ rows[:, :40], **close
    )


@pytest.mark.skipif(not onednn_is_faster(), reason="MKL multiplies here")
def test_onednn_multiplies_only_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, ...]] = []
    original = torch.ops.mkldnn._linear_pointwise

    def counted(rows: Tensor, *others: object) -> Tensor:
        called.append(tuple(rows.shape))
        return original(rows, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    product(torch.ones(8, 8), torch.ones(8, 8))
    assert not called
    product(torch.ones(300, 80), torch.ones(96, 80))
    assert called == [(300, 80)]
