"""PyTorch's traps, each sprung on a naive parametrization and passed over by this package."""

import copy
import io
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import (
    NegativeDiagonal,
    init_,
    register_negative_diagonal,
    remove_negative_diagonal,
)

# A parametrization as one writes it first, and what people do with it.


class Naive(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-original.diagonal().exp())
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        original = weight.clone()
        original.diagonal().copy_(weight.diagonal().neg().log())
        return original


class NaiveSoftplus(Naive):
    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-nn.functional.softplus(original.diagonal()))
        return weight


class NaiveFlip(Naive):
    def forward(self, original: Tensor) -> Tensor:
        weight = original.clone()
        weight.diagonal().copy_(-original.diagonal().abs())
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def naive(
    module: nn.Module, parametrization: type[nn.Module] = Naive, name: str = "weight"
) -> nn.Module:
    parametrize.register_parametrization(module, name, parametrization())
    return module


def feasible(size: int = 4) -> nn.Linear:
    """A layer whose diagonal is negative already, so that the naive ``log`` survives it."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    with torch.no_grad():
        layer.weight.diagonal().abs_().neg_()
    return layer


def negative(layer: nn.Module) -> bool:
    return bool((layer.weight.diagonal() < 0).all())


def test_registration_makes_half_of_the_diagonal_nan():
    """Trap: registering runs ``right_inverse`` on a weight that is not feasible yet."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    ours = register_negative_diagonal(copy.deepcopy(layer))
    assert naive(layer).weight.diagonal().isnan().sum() > 4
    assert negative(ours)


def test_a_missing_inverse_goes_unnoticed():
    """Trap: a ``right_inverse`` that raises NotImplementedError is skipped, and values jump."""

    class NoInverse(Naive):
        def right_inverse(self, weight: Tensor) -> Tensor:
            raise NotImplementedError

    class OursWithoutInverse(NegativeDiagonal):
        def map(self, x: Tensor) -> Tensor:
            return -x.exp()

    before = feasible().weight
    assert not naive(feasible(), NoInverse).weight.allclose(before)
    layer = feasible()
    with pytest.raises(NotImplementedError, match="inverse"):
        register_negative_diagonal(layer, map=OursWithoutInverse)
    assert torch.equal(layer.weight, before)


def test_assigning_aliases_the_users_tensor():
    """Trap: what ``right_inverse`` returns is ``set_()`` into the parameter, never copied."""
    value = feasible().weight.detach().clone()
    layer = naive(feasible(), NaiveFlip)
    layer.weight = value
    ours = register_negative_diagonal(feasible(), map="sign_flip")
    ours.weight = value
    value.fill_(7.0)
    assert (layer.parametrizations.weight.original == 7).all()
    assert not (ours.weight == 7).any()


def test_a_wrong_shape_resizes_the_parameter():
    """Trap: assigning a tensor of another shape silently resizes the parameter."""
    wrong = -torch.eye(6)
    layer = naive(feasible(), NaiveFlip)
    layer.weight = wrong
    assert layer.weight.shape == (6, 6)
    ours = register_negative_diagonal(feasible(), map="sign_flip")
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(6, 6\)"):
        ours.weight = wrong
    assert ours.weight.shape == (4, 4)


def test_a_failed_registration_leaves_the_weight_overwritten():
    """Trap: a registration that fails after ``right_inverse`` keeps the unconstrained values."""

    class WrongShape(Naive):
        def forward(self, original: Tensor) -> Tensor:
            return original[0]

    class OursWrongShape(NegativeDiagonal):
        def map(self, x: Tensor) -> Tensor:
            return -x.exp()[:1]

        def inverse(self, d: Tensor) -> Tensor:
            return d.neg().log()

    before = feasible().weight
    layer = feasible()
    with pytest.raises(ValueError, match="shape"):
        naive(layer, WrongShape)
    assert not torch.equal(layer.weight, before)
    ours = feasible()
    with pytest.raises(ValueError, match="map"):
        register_negative_diagonal(ours, map=OursWrongShape)
    assert type(ours) is nn.Linear
    assert torch.equal(ours.weight, before)


def test_a_copy_inside_cached_returns_the_weight_of_its_source():
    """Trap: deep copies share the injected class, whose cache knows them as one module."""

    def copied_inside_cached(layer: nn.Module) -> tuple[Tensor, Tensor]:
        replica = copy.deepcopy(layer)
        with torch.no_grad():
            replica.parametrizations.weight.original.sub_(1)
            with parametrize.cached():
                return layer.weight, replica.weight

    assert torch.equal(*copied_inside_cached(naive(feasible())))
    assert not torch.equal(*copied_inside_cached(register_negative_diagonal(feasible())))


def test_removing_from_a_copy_breaks_its_source():
    """Trap: ``remove_parametrizations`` on a copy deletes the property of the shared class."""
    layer = naive(feasible())
    parametrize.remove_parametrizations(copy.deepcopy(layer), "weight")
    with pytest.raises(AttributeError):
        layer.weight  # noqa: B018
    ours = register_negative_diagonal(feasible())
    remove_negative_diagonal(copy.deepcopy(ours))
    assert negative(ours)
    parametrize.remove_parametrizations(copy.deepcopy(ours), "weight")
    assert negative(ours)


def test_a_parametrized_module_does_not_pickle():
    """Trap: a parametrized module can neither be pickled nor saved as a whole."""
    with pytest.raises(RuntimeError, match="state_dict"):
        torch.save(naive(feasible()), io.BytesIO())
    buffer = io.BytesIO()
    ours = register_negative_diagonal(feasible())
    torch.save(ours, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False).weight, ours.weight)


def test_a_plain_checkpoint_does_not_load():
    """Trap: the key of the weight changes, so checkpoints from before registration fail."""
    plain = {key: value - 1 for key, value in feasible().state_dict().items()}
    with pytest.raises(RuntimeError, match="Missing key"):
        naive(feasible()).load_state_dict(plain)
    ours = register_negative_diagonal(feasible())
    ours.load_state_dict(plain)
    torch.testing.assert_close(ours.weight, plain["weight"])


def test_a_plain_checkpoint_is_ignored_without_strict():
    """Trap: with ``strict=False`` the weight silently keeps its old value."""
    plain = {"weight": feasible().weight.detach() - 1}
    layer = naive(feasible())
    layer.load_state_dict(plain, strict=False)
    torch.testing.assert_close(layer.weight, feasible().weight)
    ours = register_negative_diagonal(feasible())
    ours.load_state_dict(plain, strict=False)
    torch.testing.assert_close(ours.weight, plain["weight"])


def test_a_checkpoint_of_another_map_loads():
    """Trap: an exp checkpoint loads into a softplus model, where it means another weight."""
    layer = naive(feasible())
    other = naive(feasible(), NaiveSoftplus)
    other.load_state_dict(layer.state_dict())
    assert not other.weight.allclose(layer.weight)
    exp = register_negative_diagonal(feasible())
    softplus = register_negative_diagonal(feasible(), map="softplus")
    before = softplus.weight.clone()
    with pytest.raises(RuntimeError, match=r"softplus.*exp"):
        softplus.load_state_dict(exp.state_dict())
    assert torch.equal(softplus.weight, before)


def test_a_load_hook_stays_behind_after_removal():
    """Trap: the hook of torch's own weight_norm outlives its removal and then breaks loading."""
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    parametrize.remove_parametrizations(layer, "weight")
    plain = nn.Linear(3, 3).state_dict()
    legacy = {"weight_g": torch.ones(3, 1), "weight_v": plain["weight"], "bias": plain["bias"]}
    assert layer.load_state_dict(legacy, strict=False).unexpected_keys != ["weight_g", "weight_v"]
    ours = remove_negative_diagonal(register_negative_diagonal(feasible()))
    assert not ours._load_state_dict_pre_hooks
    ours.load_state_dict(feasible().state_dict())


def test_in_place_initialization_is_ignored():
    """Trap: ``nn.init`` on a parametrized weight fills a tensor that nobody keeps."""
    layer = naive(feasible())
    nn.init.constant_(layer.weight, -3.0)
    assert not (layer.weight == -3).any()
    ours = init_(register_negative_diagonal(feasible()), "weight", nn.init.constant_, -3.0)
    assert ours.weight.allclose(torch.tensor(-3.0))


def test_resetting_is_ignored():
    """Trap: ``reset_parameters`` initializes the bias and leaves the weight."""
    layer, ours = naive(feasible()), register_negative_diagonal(feasible())
    before = layer.weight.clone(), ours.weight.clone()
    for module in (layer, ours):
        module.reset_parameters()
    assert torch.equal(layer.weight, before[0])
    assert not torch.equal(ours.weight, before[1])
    assert negative(ours)


def test_an_emptied_module_stays_uninitialized():
    """Trap: after ``to_empty`` a reset leaves the original as it came from the allocator."""

    def emptied(layer: nn.Module) -> nn.Module:
        layer.to("meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.parametrizations.weight.original.fill_(float("nan"))
        layer.reset_parameters()
        return layer

    assert emptied(naive(feasible())).weight.isnan().all()
    ours = emptied(register_negative_diagonal(feasible()))
    assert ours.weight.isfinite().all()
    assert negative(ours)


def test_a_tied_weight_is_rewritten():
    """Trap: registering one side of a tied pair rewrites the parameter under the other."""

    def tied() -> nn.ModuleList:
        model = nn.ModuleList([feasible(), feasible()])
        model[1].weight = model[0].weight
        return model

    before = feasible().weight
    model = tied()
    naive(model[0])
    assert not torch.equal(model[1].weight, before)
    ours = tied()
    with pytest.raises(ValueError, match=r"0\.weight.*1\.weight"):
        register_negative_diagonal(ours, "0.weight")
    assert torch.equal(ours[1].weight, before)


def test_cached_weights_lose_their_gradients():
    """Trap: a weight cached without gradients is handed to callers that need them."""

    def trained_in_cached(layer: nn.Module) -> Tensor:
        with parametrize.cached():
            with torch.no_grad():
                layer.weight  # noqa: B018
            return layer.weight

    assert not trained_in_cached(naive(feasible())).requires_grad
    assert trained_in_cached(register_negative_diagonal(feasible())).requires_grad


def test_cached_weights_go_stale():
    """Trap: a step inside ``cached()`` is not seen by what reads the weight after it."""

    def stepped_in_cached(layer: nn.Module) -> tuple[Tensor, Tensor]:
        with parametrize.cached(), torch.no_grad():
            before = layer.weight.clone()
            layer.parametrizations.weight.original.sub_(1)
            return before, layer.weight

    assert torch.equal(*stepped_in_cached(naive(feasible())))
    assert not torch.equal(*stepped_in_cached(register_negative_diagonal(feasible())))


def test_cached_in_one_thread_caches_in_all():
    """Trap: ``cached()`` is global, so a server thread inside it disturbs a training thread."""

    def trained_beside_a_server(layer: nn.Module) -> Tensor:
        inside, trained = threading.Event(), threading.Event()

        def serve() -> None:
            with parametrize.cached(), torch.no_grad():
                layer.weight  # noqa: B018
                inside.set()
                trained.wait(60)

        server = threading.Thread(target=serve)
        server.start()
        assert inside.wait(60)
        try:
            return layer.weight
        finally:
            trained.set()
            server.join()

    assert not trained_beside_a_server(naive(feasible())).requires_grad
    assert trained_beside_a_server(register_negative_diagonal(feasible())).requires_grad


def test_the_value_jumps_when_a_second_parametrization_comes():
    """Trap: on a parametrized tensor, ``right_inverse`` of the newcomer is not applied."""

    def halved() -> nn.Module:
        class Half(nn.Module):
            def forward(self, original: Tensor) -> Tensor:
                return original / 2

            def right_inverse(self, weight: Tensor) -> Tensor:
                return weight * 2

        layer = feasible()
        parametrize.register_parametrization(layer, "weight", Half())
        return layer

    before = feasible().weight
    assert not naive(halved()).weight.allclose(before)
    assert register_negative_diagonal(halved()).weight.allclose(before)


def test_a_second_registration_goes_unnoticed():
    """Trap: the same parametrization can be registered twice."""
    naive(naive(feasible()))
    with pytest.raises(ValueError, match="registered"):
        register_negative_diagonal(register_negative_diagonal(feasible()))


@pytest.mark.slow
def test_the_legacy_onnx_exporter_drops_the_map():
    """Trap: an in-place write to the diagonal is not in the exported graph."""
    import onnxruntime

    def exported_diagonal(layer: nn.Module) -> Tensor:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                layer, (torch.eye(4),), buffer, dynamo=False, input_names=["x"], verbose=False
            )
        session = onnxruntime.InferenceSession(buffer.getvalue())
        (output,) = session.run(None, {"x": torch.eye(4).numpy()})
        return (torch.from_numpy(output) - layer.bias.detach()).diagonal()

    layer, ours = feasible(), feasible()
    expected = layer.weight.detach().diagonal().clone()
    assert not exported_diagonal(naive(layer)).allclose(expected)
    torch.testing.assert_close(exported_diagonal(register_negative_diagonal(ours)), expected)


def test_a_masked_map_has_nan_gradients():
    """Trap: ``where(eye, f(original), original)`` gives NaN where ``f`` overflows off the mask."""

    class Masked(Naive):
        def forward(self, original: Tensor) -> Tensor:
            return torch.where(torch.eye(4).bool(), -original.exp(), original)

    def trained(layer: nn.Module, exporting: bool) -> Tensor:
        with torch.no_grad():
            layer.parametrizations.weight.original[0, 1] = 200.0
        if exporting:
            layer = torch.export.export(layer, (torch.eye(4),)).module()
        layer(torch.eye(4)).sum().backward()
        return layer.parametrizations.weight.original.grad

    assert trained(naive(feasible(), Masked), False)[0, 1].isnan()
    for exporting in (False, True):
        grad = trained(register_negative_diagonal(feasible()), exporting)
        assert grad.isfinite().all()


def test_a_naive_diagonal_of_an_lstm_is_that_of_its_first_gate():
    """Trap: the gates of an LSTM are stacked, and ``diagonal()`` ends with the first."""
    torch.manual_seed(0)
    layer, ours = nn.LSTM(3, 8), nn.LSTM(3, 8)
    parametrize.register_parametrization(layer, "weight_hh_l0", NaiveFlip())
    register_negative_diagonal(ours, "weight_hh_l0")

    def gates(module: nn.Module) -> Tensor:
        return module.weight_hh_l0.unflatten(0, (4, 8)).diagonal(dim1=1, dim2=2)

    assert (gates(layer)[0] < 0).all()
    assert (gates(layer)[1:] > 0).any()
    assert (gates(ours) < 0).all()


def test_an_rnn_cannot_be_copied_after_a_forward_pass():
    """Trap: an RNN keeps mapped weights, which are not leaves, and deepcopy refuses those."""
    layer, ours = nn.RNN(3, 4), nn.RNN(3, 4)
    parametrize.register_parametrization(layer, "weight_hh_l0", NaiveFlip())
    register_negative_diagonal(ours, "weight_hh_l0")
    for module in (layer, ours):
        module(torch.zeros(2, 1, 3))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    assert torch.equal(copy.deepcopy(ours).weight_hh_l0, ours.weight_hh_l0)


def test_functional_call_needs_the_key_of_the_original():
    """Trap: ``functional_call`` takes the plain name for an assignment, and fails obscurely."""

    def gradient(layer: nn.Module, key: str) -> Tensor:
        def loss(tensor: Tensor) -> Tensor:
            return torch.func.functional_call(layer, {key: tensor}, (torch.eye(4),)).sum()

        return torch.func.grad(loss)(-torch.eye(4))

    key = "parametrizations.weight.original"
    with pytest.raises(RuntimeError, match="rewrite the function being transformed"):
        gradient(naive(feasible()), "weight")
    ours = register_negative_diagonal(feasible())
    before = ours.weight.clone()
    with pytest.raises(RuntimeError, match=key):
        gradient(ours, "weight")
    expected = torch.ones(4, 4) - (1 + torch.tensor(-1.0).exp()) * torch.eye(4)
    torch.testing.assert_close(gradient(ours, key), expected)
    assert torch.equal(ours.weight, before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_have_no_negative_diagonal_are_taken(dtype):
    """Trap: tensors of any dtype can be parametrized, and fail later or mean nothing."""

    def module() -> nn.Module:
        module = nn.Module()
        module.register_buffer("weight", torch.eye(4).to(dtype))
        return module

    naive(module(), nn.Identity)
    with pytest.raises(TypeError, match="float"):
        register_negative_diagonal(module())
