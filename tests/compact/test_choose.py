"""Whole networks in one native call, and the choice between forms: the same outputs, whatever is chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.prune import l1_unstructured

import nucleate.compact.choose as choose
from nucleate.compact import native
from nucleate.compact.choice import Choice
from nucleate.compact.choose import Accelerated, accelerate
from nucleate.compact.fold import folded, masked
from nucleate.compact.plan import Plan
from nucleate.compact.shrink import shrink
from nucleate.models import build
from nucleate.spec import ModelSpec

NETS = {
    "mlp": (ModelSpec(name="mlp", width=40, depth=2, batchnorm=True), (1, 9, 9)),
    "convnet": (ModelSpec(name="convnet", width=8, depth=4, batchnorm=True), (3, 17, 16)),
    "resnet": (ModelSpec(name="resnet", width=4, depth=1, batchnorm=True), (3, 16, 16)),
}


def sparse_net(name: str, density: float = 0.3) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with random statistics and some weights left."""
    spec, shape = NETS[name]
    g = Generator().manual_seed(0)
    net = build(spec, shape, 10, generator=g).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(generator=g)
            module.running_var.uniform_(0.5, 2, generator=g)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data *= torch.rand(module.weight.shape, generator=g) < density
    return net, shape


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "LEAST_SECONDS", 0.0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 3, 16])
@torch.no_grad()
def test_a_plan_is_the_network(name: str, batch: int) -> None:
    if not native.available():
        pytest.skip(native.status())
    net, shape = sparse_net(name)
    x = torch.randn(batch, *shape, generator=Generator().manual_seed(batch))
    graph = folded(net)
    for form in ("single", "block"):
        plan = Plan(graph, x, {layer: form for layer, _ in graph.named_modules()})
        for again in (x, x.flip(0)):
            assert torch.allclose(plan(again), net(again), atol=1e-5)


@torch.no_grad()
def test_gelu_in_a_plan_keeps_float32() -> None:
    if not native.available():
        pytest.skip(native.status())
    net = nn.Sequential(nn.Linear(1, 1), nn.GELU(), nn.Linear(1, 1))
    for layer in (net[0], net[2]):
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.0)
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -1e-20, 1e30, -1e30, -40.0, 300.0])])[:, None]
    exact = nn.functional.gelu(x.double())
    assert float(((Plan(folded(net), x, {})(x) - exact).abs() / (1 + exact.abs())).max()) < 5e-7
    # A padded image too, between two convolutions.
    image = torch.randn(2, 3, 6, 6)
    pair = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 2, 3, padding=1))
    assert torch.allclose(Plan(folded(pair), image, {})(image), pair(image), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, 3), nn.AvgPool2d((2, 3), 1)],
    ids=str,
)
def test_pooling_in_a_plan(pool: nn.Module, batch: int) -> None:
    if not native.available():
        pytest.skip(native.status())
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), pool)
    x = torch.randn(batch, 2, 7, 9, generator=Generator().manual_seed(0))
    x[0, 0, 3, 4] = float("nan")
    assert torch.allclose(Plan(folded(net), x, {})(x), net(x), atol=1e-5, equal_nan=True)


def test_a_plan_says_what_it_cannot_do() -> None:
    if not native.available():
        pytest.skip(native.status())
    for layers, reason in (
        ([nn.Conv2d(3, 4, 3), nn.SiLU()], "SiLU, has no native step"),
        ([nn.Conv2d(3, 4, 3), nn.GELU("tanh")], "an approximate GELU"),
        ([nn.ReLU(), nn.Conv2d(3, 4, 3)], "follows no layer"),
        ([nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")], "padding mode 'circular'"),
        ([nn.Conv2d(3, 4, 3, stride=(1, 2))], r"strides \(1, 2\) differ"),
        ([nn.AvgPool2d(3, padding=1)], "an average with padding"),
    ):
        with pytest.raises(ValueError, match=reason):
            Plan(folded(nn.Sequential(*layers)), torch.ones(2, 3, 8, 8), {})


@pytest.mark.parametrize("name", NETS)
def test_every_candidate_is_the_same_function(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape = sparse_net(name)
    masks = {
        k: (torch.rand(p.shape, generator=Generator().manual_seed(1)) < 0.5).to(torch.uint8)
        for k, p in net.named_parameters()
        if p.dim() > 1
    }
    x = torch.randn(4, *shape, generator=Generator().manual_seed(2))
    expected = copy.deepcopy(net)
    for k, p in expected.named_parameters():
        p.data *= masks.get(k, torch.ones(()))
    seen: set[str] = set()
    for k in range(6 if engine == "native" else 4):
        # Whichever comes out as the fastest.
        def fake(calls: Mapping[str, Callable[[], object]], k: int = k) -> dict[str, float]:
            fastest = "single" if "single" in calls else list(calls)[k % len(calls)]
            return {name: 1.0 if name == fastest else 2.0 for name in calls}

        monkeypatch.setattr(choose, "measure", fake)
        fast = accelerate(net, x, masks=masks)
        assert fast.report.difference <= 1e-5 and str(fast.report)
        seen.add(fast.report.chosen)
        assert not fast.training and not hasattr(net, "report")
        assert (fast.report.chosen == "as it was") == ("nothing is faster" in str(fast.report))
        with torch.no_grad():
            for batch in (x, x[:2]):
                assert torch.allclose(fast(batch), expected(batch), atol=1e-5)
            replayed = accelerate(net, x, masks=masks, choice=fast.report.choice)
            assert isinstance(replayed, Accelerated)
            assert torch.equal(replayed(x), fast(x))
            assert torch.equal(copy.deepcopy(replayed)(x), fast(x))
        assert all(isinstance(la.left, int) and la.left < la.weights for la in fast.report.layers)
    assert {"as it was", "dense, folded"} <= seen
    assert engine == "torch" or {"sparse layers", "one native call"} <= seen


def test_dead_units_are_removed_where_that_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape = sparse_net("convnet", density=1.0)
    mask = torch.ones(16, 8, 3, 3)
    mask[5:] = 0
    wanted = "shrunk, dense, folded"
    monkeypatch.setattr(choose, "measure", lambda calls: {name: 1.0 if name == wanted else 2.0 for name in calls})
    x = torch.randn(2, *shape)
    fast = accelerate(net, x, masks={"hidden.2.conv.weight": mask})
    assert fast.report.chosen == wanted and fast.report.difference <= 1e-5
    assert fast.report.layers[3].weights < net.hidden[3].conv.weight.numel()
    again = accelerate(net, x, masks={"hidden.2.conv.weight": mask}, choice=fast.report.choice)
    assert torch.equal(again(x), fast(x))


def test_a_choice_is_read_back(tmp_path: Path) -> None:
    choice = Choice(form="plan", layers={"0": "block"})
    choice.save(tmp_path / "choice.json")
    assert Choice.load(tmp_path / "choice.json") == choice
    for text in (
        '{"shape": 1}',
        "[1]",
        "null",
        '{"form": "zzz"}',
        '{"form": "dense", "shrunk": "yes"}',
        '{"form": "dense", "layers": null}',
        '{"form": "sparse", "layers": {"0": "double"}}',
        '{"form": "sparse", "layers": {"0": ["single"]}}',
    ):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match="holds no choice of accelerate"):
            Choice.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="holds no choice of accelerate"):
        Choice.load(tmp_path / "none.json")


@pytest.mark.parametrize("form", ["plan", "sparse", "dense"])
def test_gradients_of_the_input_flow_through_every_form(form: str) -> None:
    net, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(3, 8)
    if form == "plan" and not native.available():
        pytest.skip(native.status())
    fast = accelerate(net, x, choice=Choice(form=form, layers={"0": "single"}))
    leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    fast(leaf).sum().backward()
    net(twin).sum().backward()
    assert leaf.grad is not None and twin.grad is not None
    assert torch.allclose(leaf.grad, twin.grad)


class Heads(nn.Module):
    """One layer for two inputs, each with a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Linear(8, 8), nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.b[0](self.c(x)) + self.b[1](self.c(2 * x))  # type: ignore[no-any-return]


class InPlace(nn.Module):
    """Sums in place, before and after which the tensor is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        early = self.c(h)
        skip = h
        h += self.b(x)
        h.add_(early)
        return self.c(h) + skip  # type: ignore[no-any-return]


class View(InPlace):
    """A sum in place in a view, of which the whole is read."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h.view(-1, 8).add_(1.0)
        return self.c(h)  # type: ignore[no-any-return]


class TwoReaders(nn.Module):
    """An image that is flattened for a GELU and read once more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.p = nn.Conv2d(3, 4, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1)
        self.f, self.h = nn.Linear(256, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        f = self.f(self.g(torch.flatten(h, 1)))
        return f + self.h(torch.flatten(self.p(h), 1))  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize("kind", [Heads, InPlace, View, TwoReaders])
def test_no_form_changes_what_code_reads_twice(kind: type[nn.Module]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = kind()
        x = torch.randn(4, *((3, 8, 8) if kind is TwoReaders else (8,)))
        for _ in range(3):
            net(3 * x + 1)
    net.eval()
    for form in ("dense", "plan") if native.available() and kind in (InPlace, TwoReaders) else ("dense",):
        fast = accelerate(net, x, choice=Choice(form=form))
        assert torch.allclose(fast(x), net(x), atol=1e-5)
    if kind is View:
        with pytest.raises(ValueError, match="overwrites memory that is read again"):
            folded(net)


def test_a_model_may_overwrite_its_input() -> None:
    class Scaling(nn.Module):
        """Scales in place what it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(3.0).add_(1.0)
            return self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]

    net, x = Scaling().eval(), torch.randn(4, 8)
    before = x.clone()
    with torch.no_grad():
        net.a.weight[3:], net.a.bias[3:] = 0, 0
        expected = net(x.clone())
    fast = accelerate(net, x)
    assert fast.report is not None and {"dense, folded", "shrunk, dense, folded"} <= set(fast.report.seconds)
    assert shrink(net, None, x).a.out_features == 3
    assert torch.equal(x, before) and torch.allclose(fast(x), expected, atol=1e-5)


def test_layers_with_hooks_stay() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 8)
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    assert torch.allclose(accelerate(net, x, choice=Choice(form="dense"))(x), net(x))
    if native.available():
        for form in ("plan", "sparse"):
            with pytest.raises(ValueError, match="has forward hooks"):
                accelerate(net, x, choice=Choice(form=form, layers={"0": "single"}))
    own = nn.Sequential(nn.Linear(8, 8))
    own.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.allclose(accelerate(own, x, choice=Choice(form="dense"))(x), own(x))


def test_forms_with_other_outputs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), torch.randn(3, 8)

    def wrong(model: nn.Module) -> nn.Module:
        out = folded(model)
        out.get_submodule("0").bias.add_(1.0)
        return out

    monkeypatch.setattr(choose, "folded", wrong)
    assert list(accelerate(net, x).report.seconds) == ["as it was"]
    with pytest.raises(ValueError, match="changes the outputs of Sequential"):
        accelerate(net, x, choice=Choice(form="dense"))


def test_the_model_as_it_was_is_a_masked_copy_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reporting(nn.Module):
        """Has a part of the report's name."""

        def __init__(self) -> None:
            super().__init__()
            self.report, self.drop = nn.Linear(8, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.report(x))  # type: ignore[no-any-return]

    net, x, mask = Reporting(), torch.randn(3, 8), torch.zeros(4, 8)
    monkeypatch.setattr(choose, "measure", lambda calls: {name: float(i) for i, name in enumerate(calls)})
    fast = accelerate(net, x, masks={"report.weight": mask})
    assert fast.report is not None and fast.report.chosen == "as it was"
    again = accelerate(net, x, masks={"report.weight": mask}, choice=fast.report.choice)
    for model in (fast, again):
        assert torch.allclose(model(x), net.report.bias.expand(3, 4))
    assert net.training and isinstance(net.report, nn.Linear)


def test_another_dtype_of_the_same_shape_runs_dense() -> None:
    net, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(3, 8)
    fast = accelerate(net, x, choice=Choice(form="plan" if native.available() else "dense"))
    single = fast(x)
    assert torch.allclose(fast.double()(x.double()), single.double(), atol=1e-6)


def test_masks_that_fit_nothing_are_refused() -> None:
    net: Callable[[Tensor], Tensor] = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="no such parameter"):
        accelerate(net, torch.ones(1, 3), masks={"w": torch.ones(2, 3)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has shape \(3, 2\), its parameter \(2, 3\)"):
        accelerate(net, torch.ones(1, 3), masks={"weight": torch.ones(3, 2)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no form 'fast'"):
        accelerate(net, torch.ones(1, 3), choice=Choice(form="fast"))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["plan", "sparse", "dense", "none"])
def test_a_batch_of_no_points(form: str) -> None:
    if form == "plan" and not native.available():
        pytest.skip(native.status())
    for net, shape in (
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU()), (8,)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), (2, 5, 5)),
    ):
        fast = accelerate(net, torch.randn(3, *shape), choice=Choice(form=form, layers={"0": "single"}))
        assert fast(torch.empty(0, *shape)).shape == net(torch.empty(0, *shape)).shape


def test_choices_that_do_not_fit_are_refused() -> None:
    net, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(3, 8)
    for layer in ("nope", "1"):
        with pytest.raises(ValueError, match=f"the choice names '{layer}', which is no linear map or convolution"):
            accelerate(net, x, choice=Choice(form="sparse", layers={layer: "single"}))


def test_models_of_more_than_a_tensor_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        """Gives two tensors."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, -x

    monkeypatch.setattr(choose, "measure", None)
    with pytest.raises(ValueError, match="Two gives a tuple, not one tensor"):
        accelerate(Two(), torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_that_are_made_of_others() -> None:
    x = torch.randn(3, 8)
    for make in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        net = nn.Sequential(make(nn.Linear(8, 4)), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2)).eval()
        assert accelerate(nn.Sequential(make(nn.Linear(8, 4)), nn.BatchNorm1d(4)), x).report is not None
        for form in ("dense", "plan") if native.available() else ("dense",):
            assert torch.allclose(accelerate(net, x, choice=Choice(form=form))(x), net(x), atol=1e-5)
        assert accelerate(net, x).report is not None
    hooked = nn.Sequential(nn.Linear(8, 4))
    l1_unstructured(hooked[0], "weight", 0.5)
    for net in (hooked, nn.utils.weight_norm(nn.Linear(8, 4))):
        with pytest.raises(ValueError, match=r"cannot be copied .* by prune.remove, remove_weight_norm"):
            accelerate(net, x)


def test_layers_that_get_their_input_by_name() -> None:
    class Named(nn.Module):
        """Names arguments."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(input=self.n(input=self.a(input=x))))  # type: ignore[no-any-return]

    net, x = Named().eval(), torch.randn(3, 8)
    fast = accelerate(net, x)
    assert fast.report is not None and [la.name for la in fast.report.layers] == ["a", "b"]
    assert torch.allclose(fast(x), net(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_units() -> None:
    net, x = nn.Sequential(nn.Linear(8, 0), nn.Linear(0, 3)), torch.randn(3, 8)
    assert torch.allclose(accelerate(net, x)(x), net(x))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_masks_of_wrapped_models_have_the_names_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net, x, masks = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 8), {}
    masks["0.weight"] = torch.ones(4, 8)
    masks["0.weight"][1:] = 0
    expected = masked(net, masks)(x)
    fast = accelerate(wrap(net), x, masks=masks)
    assert fast.report is not None and [la.name for la in fast.report.layers] == ["0", "2"]
    assert torch.allclose(fast(x), expected, atol=1e-5)
    assert torch.allclose(accelerate(wrap(net), x, masks=masks, choice=Choice(form="none"))(x), expected, atol=1e-5)
    small = shrink(wrap(net), masks, x)
    assert small[0].out_features == 1 and torch.allclose(small(x), expected, atol=1e-5)
