import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from negdiag_param import NegativeDiagonal, NegExpDiagonal
from tests.asserts import (
    assert_negative,
    assert_only_diagonal_differs,
    assert_same_bits,
    distance_in_eps,
)
from tests.cases import BUILT_IN, DTYPES, MARGINS, NegSquareDiagonal, matrix

EVERY_MAP = {**BUILT_IN, "subclass": NegSquareDiagonal}


def extremes(dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    sizes = [0.0, smallest, info.tiny, 1e-3, 0.1, 1.0, 1.7, 9.0, 11.0, 40.0, 88.7, 103.9, 709.7]
    sizes += [info.max**0.5, info.max / 2, info.max]
    return torch.tensor([sign * size for size in sizes for sign in (1, -1)], dtype=dtype)


def with_diagonal(values: Tensor) -> Tensor:
    torch.manual_seed(0)
    n = len(values)
    original = torch.randn(n, n, dtype=torch.float64).to(values.dtype)
    original[0, 1], original[1, 0] = torch.finfo(values.dtype).max, -0.0
    original.diagonal().copy_(values)
    return original


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", EVERY_MAP)
def test_every_finite_original_gives_a_strictly_negative_diagonal(name, margin, dtype):
    parametrization = EVERY_MAP[name](margin)
    original = with_diagonal(extremes(dtype)).requires_grad_()
    weight = parametrization(original)
    assert_negative(weight.diagonal(), margin)
    assert_only_diagonal_differs(weight, original, matrix)
    weight.backward(torch.full_like(weight, 3.0))
    assert original.grad is not None
    if name in BUILT_IN:
        assert original.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_all_forms_of_the_operation_agree_on_values_and_slopes(name, margin, dtype):
    parametrization = BUILT_IN[name](margin)
    original = with_diagonal(extremes(dtype))
    grad = torch.randn(original.shape).to(dtype)
    leaf = original.clone().requires_grad_()
    eager = parametrization(leaf)
    eager.backward(grad)
    transformed, vjp = torch.func.vjp(parametrization, original)
    assert_same_bits(transformed, eager)
    torch.testing.assert_close(vjp(grad)[0], leaf.grad)
    _, tangent = torch.func.jvp(parametrization, (original,), (grad,))
    torch.testing.assert_close(tangent, leaf.grad)
    with torch.no_grad():
        assert_same_bits(parametrization(leaf), eager)
    exported = parametrization.diagonal.replaced(
        original, parametrization.value(original.diagonal())
    )
    assert_same_bits(exported, eager)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_initialisation_is_exact(name, dtype):
    eps = {torch.float32: 100, torch.float64: 300}.get(dtype, 40)
    span = {torch.float16: 3, torch.bfloat16: 30, torch.float32: 30, torch.float64: 100}[dtype]
    diagonal = -torch.logspace(-span, span, 101, dtype=torch.float64).to(dtype)
    weight = with_diagonal(diagonal)
    parametrization = BUILT_IN[name]()
    found = parametrization(parametrization.right_inverse(weight))
    assert_only_diagonal_differs(found, weight, matrix)
    assert distance_in_eps(found.diagonal(), diagonal) <= (0 if name == "sign_flip" else eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_value_it_gives_can_be_assigned(name, margin, dtype):
    parametrization = BUILT_IN[name](margin, infeasible="error")
    weight = parametrization(with_diagonal(extremes(dtype)))
    found = parametrization(parametrization.right_inverse(weight))
    # Half an eps of the stored logarithm, which reaches 709 in float64 and 88 elsewhere.
    assert distance_in_eps(found.diagonal(), weight.diagonal()) <= 360
    if name == "sign_flip":
        assert_same_bits(found, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [0.1, 1.7])
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_boundary_itself_is_feasible(name, margin, dtype):
    parametrization = BUILT_IN[name](margin, infeasible="error")
    bound = parametrization._limits[dtype].bound
    weight = torch.full((2, 2), bound, dtype=dtype)
    assert_same_bits(parametrization(parametrization.right_inverse(weight)), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", EVERY_MAP)
def test_infeasible_entries_are_reflected_or_start_a_little_inside(name, margin, dtype):
    parametrization = EVERY_MAP[name](margin, infeasible="reflect")
    weight = torch.diag(torch.tensor([5.0, 0.0, margin, margin / 2, -margin / 2], dtype=dtype))
    original = parametrization.right_inverse(weight).requires_grad_()
    found = parametrization(original)
    assert_negative(found.diagonal(), margin)
    torch.testing.assert_close(found[0, 0], -weight[0, 0], rtol=0.05, atol=0)
    found.sum().backward()
    assert (original.grad.diagonal() != 0).all(), "an entry that cannot train"
    away = max(1e-3, 8 * torch.finfo(dtype).eps * margin)
    assert (found.diagonal()[1:].double() + margin >= -2 * away - 0.05 * margin).all()


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 3), {}),
        ((2, 4), {}),
        ((6, 2, 3), {"blocks": 2}),
        ((4, 2, 3, 2), {"blocks": 2, "taps": "center"}),
        ((2, 3, 3), {"dims": (-2, -1)}),
        ((3,), {}),
    ],
    ids=str,
)
def test_derivatives_of_every_kind(name, margin, shape, options):
    parametrization = BUILT_IN[name](margin, **options)
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        parametrization,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        parametrization, x, check_fwd_over_rev=True, check_batched_grad=True
    )

    def energy(x: Tensor) -> Tensor:
        return (parametrization(x) ** 3).sum()

    expected = torch.autograd.functional.hessian(energy, x)
    jacobians = torch.func.jacrev, torch.func.jacfwd
    for outer in jacobians:
        for inner in jacobians:
            torch.testing.assert_close(outer(inner(energy))(x), expected)
    batch = torch.randn((2, *shape), dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(parametrization)(batch), torch.stack([parametrization(b) for b in batch])
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_entry_at_zero_is_not_stuck(name):
    original = torch.zeros(2, 2, requires_grad=True)
    BUILT_IN[name]()(original).sum().backward()
    assert (original.grad.diagonal().abs() >= 0.5).all()


def test_sign_flip_has_the_slope_of_the_feasible_side_at_the_boundary():
    for margin in (0.0, 0.5):
        original = torch.full((1, 1), -margin, requires_grad=True)
        BUILT_IN["sign_flip"](margin)(original).backward()
        assert original.grad.item() == 1.0


def test_sign_flip_reflects_about_minus_margin():
    x = torch.tensor([[0.3]], dtype=torch.float64)
    assert BUILT_IN["sign_flip"](0.5)(x).item() == pytest.approx(-1.3)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("margin", MARGINS)
def test_large_steps_toward_a_positive_diagonal_never_leave_the_negatives(name, margin):
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    parametrize.register_parametrization(
        layer, "weight", BUILT_IN[name](margin, infeasible="reflect")
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0)
    for _ in range(300):
        optimizer.zero_grad()
        (layer.weight - 5.0).square().mean().backward()
        optimizer.step()
        assert_negative(layer.weight.diagonal(), margin)


def test_the_forums_printed_numbers():
    # https://discuss.pytorch.org/t/177339, with torch.manual_seed(2023)
    torch.manual_seed(2023)
    original = torch.randn(5, 5, requires_grad=True)
    weight = NegExpDiagonal()(original)
    printed = torch.tensor([-1.5380, -1.5262, -2.2668, -3.7607, -0.4784])
    torch.testing.assert_close(weight.diagonal(), printed, rtol=0, atol=5e-5)
    x = torch.randn(5, 5)
    (weight @ x).sum().backward()
    ones = torch.ones(5, 5)
    expected = ones @ x.T
    expected.diagonal().mul_(weight.detach().diagonal())
    torch.testing.assert_close(original.grad, expected)


@pytest.mark.parametrize("name", EVERY_MAP)
def test_the_inverse_never_aliases_and_keeps_the_memory_format(name):
    parametrization = EVERY_MAP[name](infeasible="reflect")
    weight = -torch.rand(3, 3).add(0.1)
    assert parametrization.right_inverse(weight).data_ptr() != weight.data_ptr()
    assert parametrization.right_inverse(weight.T).is_contiguous()
    kernels = -torch.rand(4, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    found = parametrization.right_inverse(kernels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert parametrization(found).is_contiguous(memory_format=torch.channels_last)


def test_a_subclass_that_overrides_the_map_of_a_ready_one_is_honoured():
    class Doubled(NegExpDiagonal):
        def map(self, x: Tensor) -> Tensor:
            return -2 * x.exp()

        def inverse(self, d: Tensor) -> Tensor:
            return (-d / 2).log()

    parametrization = Doubled()
    weight = -torch.eye(2) * 3
    original = parametrization.right_inverse(weight)
    assert original[0, 0].exp().item() == pytest.approx(1.5)
    torch.testing.assert_close(parametrization(original), weight)


def test_a_learnable_map_gets_its_gradient():
    class Scaled(NegSquareDiagonal):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def map(self, x: Tensor) -> Tensor:
            return super().map(x) * self.scale

    parametrization = Scaled()
    parametrization(torch.randn(3, 3)).sum().backward()
    assert parametrization.scale.grad is not None


def test_the_base_class_says_what_to_define():
    with pytest.raises(NotImplementedError, match=r"must define map"):
        NegativeDiagonal()(torch.randn(2, 2))


@pytest.mark.parametrize("name", BUILT_IN)
def test_repr_shows_what_differs_from_the_defaults(name):
    cls = BUILT_IN[name]
    assert repr(cls()) == f"{cls.__name__}()"
    text = repr(cls(0.5, (0, 1), "center", 2, "error", True))
    for part in ("margin=0.5", "dims=(0, 1)", "taps='center'", "blocks=2", "infeasible='error'"):
        assert part in text
