"""Sparse layers against torch's own in float64, over random sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, library, nn

from nucleate.compact import native
from nucleate.compact.pattern import WIDE, pattern, scatter, transposed
from nucleate.compact.sparse import SparseConv2d, SparseLinear


def draw(g: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=g))


def random_mask(shape: tuple[int, ...], g: Generator, *, block: int) -> Tensor:
    """Density between 0 and 1, both included now and then; some rows empty."""
    density = draw(g, 0, 11) / 10
    mask = (torch.rand(shape, generator=g) < density).float()
    mask[torch.rand(shape[0], generator=g) < 0.1] = 0
    return mask[::4].repeat_interleave(4, 0)[: shape[0]] if block == 4 else mask


def random_layout(x: Tensor, g: Generator) -> Tensor:
    """The same values, contiguous or not."""
    kind = draw(g, 0, 3)
    if kind == 0:
        return x.permute(*range(1, x.dim()), 0).contiguous().permute(-1, *range(x.dim() - 1))
    return torch.stack([x, x], -1)[..., 0] if kind == 1 else x


def agrees(
    layer: nn.Module, x: Tensor, exact: Tensor, parameters: dict[str, Tensor], x64: Tensor, g: Generator
) -> None:
    """Output and all gradients within 1e-5 of the reference, of the size."""
    y = layer(x)
    assert y.shape == exact.shape
    close(y, exact)
    gradient = torch.randn(exact.shape, generator=g)
    y.backward(gradient)
    exact.backward(gradient.double())
    assert x.grad is not None and x64.grad is not None
    close(x.grad, x64.grad)
    values, bias = layer.values, layer.bias
    weight = parameters["weight"]
    assert isinstance(values, nn.Parameter) and values.grad is not None and weight.grad is not None
    mask = parameters["mask"].reshape(weight.shape[0], -1)
    close(scatter(values.grad, layer.order, *mask.shape), weight.grad.reshape(mask.shape) * mask)
    if isinstance(bias, nn.Parameter):
        assert bias.grad is not None and parameters["bias"].grad is not None
        close(bias.grad, parameters["bias"].grad)


def close(value: Tensor, exact: Tensor) -> None:
    value, exact = value.detach(), exact.detach()
    scale = float(exact.abs().max()) + 1 if exact.numel() else 1.0
    assert float((value - exact).abs().max() if exact.numel() else 0.0) <= 1e-5 * scale


@pytest.mark.parametrize("block", [1, 4])
def test_linear_equals_torch_in_float64(engine: str, block: int) -> None:
    g = Generator().manual_seed(block)
    for i in range(24):
        batch, inputs, outputs = draw(g, 1, 150), draw(g, 1, 90), draw(g, 1, 70)
        batch = 1 if i % 6 == 0 else batch
        dense = nn.Linear(inputs, outputs, bias=i % 3 > 0)
        mask = random_mask((outputs, inputs), g, block=block)
        layer = SparseLinear(dense, mask, block=block, relu=i % 2 == 0)
        x = random_layout(torch.randn(batch, inputs, generator=g), g).requires_grad_()
        x64 = x.detach().double().requires_grad_()
        weight = (dense.weight * mask).detach().double().requires_grad_()
        bias = None if dense.bias is None else dense.bias.detach().double().requires_grad_()
        exact = F.linear(x64, weight, bias)
        parameters = {"weight": weight, "mask": mask} | ({} if bias is None else {"bias": bias})
        agrees(layer, x, exact.relu() if layer.relu else exact, parameters, x64, g)


@pytest.mark.parametrize("block", [1, 4])
def test_convolutions_equal_torch_in_float64(engine: str, block: int) -> None:
    g = Generator().manual_seed(10 + block)
    for i in range(24):
        groups = draw(g, 1, 4)
        inputs, outputs = groups * draw(g, 1, 6), groups * block * draw(g, 1, 5)
        window, stride, dilation = ((draw(g, 1, 5), draw(g, 1, 5)), (draw(g, 1, 4), draw(g, 1, 4)), (draw(g, 1, 3), 1))
        padding = (draw(g, 0, 4), draw(g, 0, 4))
        size = [draw(g, max(1, dilation[j] * (window[j] - 1) + 1 - 2 * padding[j]), 20) for j in range(2)]
        dense = nn.Conv2d(inputs, outputs, window, stride, padding, dilation, groups, bias=i % 3 > 0)
        mask = random_mask(tuple(dense.weight.shape), g, block=block)
        layer = SparseConv2d(dense, mask, block=block, relu=i % 2 == 0)
        x = random_layout(torch.randn((1, 2, 3, 16)[i % 4], inputs, *size, generator=g), g).requires_grad_()
        x64 = x.detach().double().requires_grad_()
        weight = (dense.weight * mask).detach().double().requires_grad_()
        bias = None if dense.bias is None else dense.bias.detach().double().requires_grad_()
        exact = F.conv2d(x64, weight, bias, stride, padding, dilation, groups)
        parameters = {"weight": weight, "mask": mask} | ({} if bias is None else {"bias": bias})
        agrees(layer, x, exact.relu() if layer.relu else exact, parameters, x64, g)


@pytest.mark.parametrize("block", [1, 4])
def test_two_threads_give_the_bits_of_one(block: int) -> None:
    if not native.available():
        pytest.skip(native.status())
    g = Generator().manual_seed(12)
    mask = (torch.rand(64, 16, 3, 3, generator=g) < 0.3).float()
    mask[:20] = 0
    conv = SparseConv2d(nn.Conv2d(16, 64, 3, padding=1), mask, block=block)
    linear = SparseLinear(nn.Linear(500, 301), torch.rand(301, 500, generator=g) < 0.2, block=block)
    before = torch.get_num_threads()
    for layer, shape in ((conv, (4, 16, 14, 14)), (linear, (70, 500))):
        x, results = torch.randn(shape, generator=g), []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append((y, *torch.autograd.grad(y.square().sum(), (leaf, layer.values))))
        torch.set_num_threads(before)
        assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(name: str) -> None:
    if not native.available():
        pytest.skip(native.status())
    best = native.instruction_set()
    try:
        if native.instruction_set(name) != name:
            pytest.skip(f"this processor has no {name}")
        g = Generator().manual_seed(5)
        for block in (1, 4):
            for batch in (1, 3, 17, 64, 131):
                dense, x = nn.Linear(300, 50), torch.randn(batch, 300, generator=g)
                mask = random_mask((50, 300), g, block=block)
                weight = (dense.weight * mask).detach().double()
                close(SparseLinear(dense, mask, block=block)(x), F.linear(x.double(), weight, dense.bias.double()))
    finally:
        native.instruction_set(best)


@pytest.mark.parametrize("columns", [WIDE - 1, WIDE, WIDE + 1])
def test_indices_widen_where_sixteen_bits_end(engine: str, columns: int) -> None:
    mask = torch.zeros(3, columns)
    mask[0, 0] = mask[1, -1] = mask[2, 5] = 1
    layer = SparseLinear(nn.Linear(columns, 3), mask)
    assert layer.indices.dtype == (torch.uint16 if columns <= 65_536 else torch.int32)
    x = torch.randn(9, columns)
    close(layer(x), F.linear(x.double(), layer.matrix().double(), layer.bias.double()))


def test_many_segments_and_their_borders(engine: str) -> None:
    g = Generator().manual_seed(3)
    dense, mask = nn.Linear(2000, 40), (torch.rand(40, 2000, generator=g) < 0.3).float()
    layer = SparseLinear(dense, mask)
    assert layer.pointers.shape[0] > 1
    x = torch.randn(33, 2000, generator=g)
    close(layer(x), F.linear(x.double(), (dense.weight * mask).double(), dense.bias.double()))


def test_patterns_give_back_their_matrix() -> None:
    g = Generator().manual_seed(4)
    for block in (1, 4):
        matrix = torch.randn(10, 300, generator=g) * random_mask((10, 300), g, block=block)
        held = pattern(matrix, block=block)
        assert torch.equal(held.scatter(held.gather(matrix)), matrix)
        turned, where = transposed(held)
        assert torch.equal(turned.scatter(held.gather(matrix).reshape(-1)[where]), matrix.T)


def test_few_positions_need_few_segments() -> None:
    mask = torch.ones(2, 1000)
    assert [len(pattern(mask, positions=n).pointers) for n in (1, 16, 64, 256)] == [1, 2, 8, 8]


def test_a_nan_stays_one(engine: str) -> None:
    layer = SparseLinear(nn.Linear(4, 4), torch.ones(4, 4), relu=True)
    x = torch.ones(20, 4)
    x[3, 2] = float("nan")
    assert torch.equal(layer(x).isnan().any(1), torch.arange(20) == 3)


def test_leading_dimensions_and_empty_batches(engine: str) -> None:
    layer = SparseLinear(nn.Linear(6, 4), torch.ones(4, 6))
    x = torch.randn(2, 3, 6)
    assert torch.allclose(layer(x), layer(x.reshape(6, 6)).view(2, 3, 4))
    assert layer(torch.empty(0, 6)).shape == (0, 4)


@pytest.mark.filterwarnings("ignore:Input #")
@pytest.mark.parametrize("block", [1, 4])
def test_gradcheck(engine: str, block: int) -> None:
    """In float64 in plain torch; in float32 a long step does, for the product is linear in each operand."""
    double = engine == "torch"
    step, near = (1e-6, 1e-5) if double else (0.5, 1e-3)
    g = Generator().manual_seed(6)
    for layer, shape in (
        (SparseLinear(nn.Linear(7, 8), random_mask((8, 7), g, block=1), block=block), (5, 7)),
        (SparseConv2d(nn.Conv2d(2, 4, 3, 2, 1), random_mask((4, 2, 3, 3), g, block=1), block=block), (2, 2, 5, 6)),
    ):
        layer = layer.double() if double else layer
        x = torch.randn(shape, generator=g, dtype=layer.values.dtype).requires_grad_()
        names = [name for name, _ in layer.named_parameters()]

        def run(x: Tensor, *parameters: Tensor, layer: nn.Module = layer, names: list[str] = names) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

        inputs = (x, *layer.parameters())
        assert torch.autograd.gradcheck(run, inputs, eps=step, atol=near, rtol=near, nondet_tol=0.0, fast_mode=False)


def test_operators_pass_torchs_own_checks() -> None:
    # How the operators trace is tested below, by compiling.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    linear = SparseLinear(nn.Linear(7, 8))
    conv = SparseConv2d(nn.Conv2d(2, 4, 3, padding=1))
    x = torch.randn(5, 7, requires_grad=True)
    library.opcheck(
        torch.ops.nucleate.sparse_linear.default,
        (x, linear.values, linear.bias, *linear._entries(), 8, False),
        test_utils=checks,
    )
    image = torch.randn(2, 2, 6, 6, requires_grad=True)
    window = (1, conv.shape, conv.stride, conv.padding, conv.dilation)
    library.opcheck(
        torch.ops.nucleate.sparse_conv2d.default,
        (image, conv.values, conv.bias, *conv._entries(), *window, True),
        test_utils=checks,
    )


def test_compiled_and_exported_models_give_the_same(engine: str) -> None:
    net = nn.Sequential(
        SparseConv2d(nn.Conv2d(2, 4, 3), relu=True), nn.MaxPool2d(2), nn.Flatten(), SparseLinear(nn.Linear(16, 3))
    )
    x = torch.randn(5, 2, 6, 6)
    expected = net(x)
    assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), expected)
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(exported(x), expected)
    torch.compile(net, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\) does not fit a weight of shape \(4, 3\)"):
        SparseLinear(nn.Linear(3, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match="pads with zeros, not in mode 'reflect'"):
        SparseConv2d(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="3 outputs in a group are no multiple of 4"):
        SparseConv2d(nn.Conv2d(2, 6, 3, groups=2), block=4)
    with pytest.raises(ValueError, match="was given 5"):
        SparseLinear(nn.Linear(3, 4))(torch.ones(1, 5))
    with pytest.raises(ValueError, match="smaller than the window"):
        SparseConv2d(nn.Conv2d(1, 1, 5))(torch.ones(1, 1, 3, 3))
    x = torch.ones(1, 3, requires_grad=True)
    with pytest.raises(ValueError, match="trainable=True"):
        SparseLinear(nn.Linear(3, 4), trainable=False)(x).sum().backward()
