"""What PyTorch promises of any parametrization, by its own door and by ours."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import register_negative_diagonal
from tests.support.asserts import assert_same_bits
from tests.support.modules import Half, linear
from tests.support.tables import CLASSES

ORIGINAL = "parametrizations.weight.original"


def by_pytorch(layer, cls, **options):
    return parametrize.register_parametrization(layer, "weight", cls(**options))


def by_us(layer, cls, **options):
    return register_negative_diagonal(layer, "weight", map=cls, **options)


every_door = pytest.mark.parametrize("door", [by_pytorch, by_us], ids=lambda door: door.__name__)
every_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)


@every_door
@every_class
class TestEveryParametrization:
    """The same things hold whoever registered."""

    def test_the_module_says_that_it_is_parametrized(self, door, cls):
        layer = linear()
        assert not parametrize.is_parametrized(layer)
        door(layer, cls)
        assert parametrize.is_parametrized(layer)
        assert parametrize.is_parametrized(layer, "weight")
        assert not parametrize.is_parametrized(layer, "bias")
        assert parametrize.type_before_parametrizations(layer) is nn.Linear
        assert isinstance(layer, nn.Linear)
        assert type(layer).__name__ == "ParametrizedLinear"
        assert isinstance(layer.parametrizations, nn.ModuleDict)
        assert [type(p) for p in layer.parametrizations.weight] == [cls]
        parametrize.remove_parametrizations(layer, "weight")
        assert not parametrize.is_parametrized(layer)
        assert type(layer) is nn.Linear
        assert not hasattr(layer, "parametrizations")

    def test_the_parameter_moves_and_stays_one(self, door, cls):
        layer = door(linear(), cls)
        names = [name for name, _ in layer.named_parameters()]
        assert names == ["bias", ORIGINAL]
        assert "weight" in dir(layer)
        assert "weight" not in layer._parameters
        parametrize.remove_parametrizations(layer, "weight")
        assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "weight"]

    def test_removal_leaves_the_value_or_the_original(self, door, cls):
        for baked in (True, False):
            layer = door(linear(-2.0), cls)
            weight = layer.weight.detach().clone()
            original = layer.parametrizations.weight.original.detach().clone()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=baked)
            assert_same_bits(layer.weight, weight if baked else original)
            assert isinstance(layer.weight, nn.Parameter)
            layer(torch.ones(1, 3)).sum().backward()
            assert layer.weight.grad is not None

    def test_parametrizations_act_in_the_order_of_their_registration(self, door, cls):
        layer = door(linear(-2.0), cls)
        parametrize.register_parametrization(layer, "weight", Half())
        torch.testing.assert_close(layer.weight.diagonal(), torch.full((3,), -1.0))
        assert [type(p) for p in layer.parametrizations.weight] == [cls, Half]
        layer.weight = -3 * torch.ones(3, 3)
        torch.testing.assert_close(layer.weight, -3 * torch.ones(3, 3))
        parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is nn.Linear

    def test_two_tensors_of_a_module_go_one_by_one(self, door, cls):
        layer = door(linear(), cls)
        parametrize.register_parametrization(layer, "bias", Half())
        parametrize.remove_parametrizations(layer, "weight")
        assert parametrize.is_parametrized(layer, "bias")
        assert not parametrize.is_parametrized(layer, "weight")
        assert layer.bias.shape == (3,)
        parametrize.remove_parametrizations(layer, "bias")
        assert type(layer) is nn.Linear

    def test_requires_grad_is_that_of_the_original(self, door, cls):
        layer = door(linear().requires_grad_(False), cls)
        assert not layer.weight.requires_grad
        layer.requires_grad_(True)
        layer(torch.ones(1, 3)).sum().backward()
        assert layer.parametrizations.weight.original.grad is not None
        layer.requires_grad_(False)
        parametrize.remove_parametrizations(layer, "weight")
        assert not layer.weight.requires_grad

    def test_the_mode_is_that_of_the_module(self, door, cls):
        layer = door(linear().eval(), cls)
        (parametrization,) = layer.parametrizations.weight
        assert not parametrization.training
        layer.train()
        assert parametrization.training

    def test_registering_under_no_grad_trains_all_the_same(self, door, cls):
        with torch.no_grad():
            layer = door(linear(), cls)
        layer(torch.ones(1, 3)).sum().backward()
        assert layer.parametrizations.weight.original.grad.diagonal().count_nonzero() == 3

    def test_assigning_initialises(self, door, cls):
        layer = door(linear(), cls)
        value = -torch.rand(3, 3) - 0.5
        layer.weight = value
        torch.testing.assert_close(layer.weight, value)

    def test_a_cached_block_computes_once(self, door, cls):
        layer = door(linear(), cls)
        assert layer.weight is not layer.weight
        with parametrize.cached():
            first = layer.weight
            with parametrize.cached():
                assert layer.weight is first
            assert layer.weight is first
        assert layer.weight is not first

    def test_a_deep_copy_is_another_module(self, door, cls):
        layer = door(linear(-2.0), cls)
        replica = copy.deepcopy(layer)
        assert_same_bits(replica.weight, layer.weight)
        assert replica.parametrizations is not layer.parametrizations
        with torch.no_grad():
            replica.parametrizations.weight.original.sub_(0.5)
        assert not torch.equal(replica.weight, layer.weight)

    def test_a_state_goes_round(self, door, cls):
        source, target = door(linear(-2.0), cls), door(linear(-3.0), cls)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        assert_same_bits(target.weight, source.weight)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_the_original_changes_dtype_and_device(self, dtype, door, cls):
        layer = door(linear(-2.0), cls).to(dtype)
        assert layer.weight.dtype == layer.parametrizations.weight.original.dtype == dtype
        assert (layer.weight.diagonal() < 0).all()
        assert layer.to("meta").weight.is_meta

    def test_transfer_takes_parametrization_and_value_along(self, door, cls):
        source, target = door(linear(-2.0), cls, infeasible="reflect"), nn.Linear(3, 3)
        parametrize.transfer_parametrizations_and_params(source, target)
        assert parametrize.is_parametrized(target, "weight")
        torch.testing.assert_close(target.weight, source.weight)
        one = nn.Linear(3, 3)
        parametrize.transfer_parametrizations_and_params(source, one, "weight")
        torch.testing.assert_close(one.weight, source.weight)
        # As for every parametrization, the two share what is trained.
        assert target.parametrizations.weight.original is source.parametrizations.weight.original
        parametrize.remove_parametrizations(target, "weight")
        assert parametrize.is_parametrized(source, "weight")

    def test_a_new_original_can_be_put_in(self, door, cls):
        layer = door(linear(), cls)
        other = door(linear(-4.0), cls).parametrizations.weight.original
        layer.parametrizations.weight.original = nn.Parameter(other.detach().clone())
        torch.testing.assert_close(layer.weight.diagonal(), torch.full((3,), -4.0))

    def test_buffers_can_be_parametrized(self, door, cls):
        module = nn.Module()
        module.register_buffer("weight", -torch.ones(3, 3))
        door(module, cls)
        assert [name for name, _ in module.named_buffers()] == [ORIGINAL]
        assert not list(module.parameters())
        parametrize.remove_parametrizations(module, "weight")
        assert [name for name, _ in module.named_buffers()] == ["weight"]
        assert not isinstance(module.weight, nn.Parameter)

    def test_what_is_not_there_is_refused(self, door, cls):
        layer = linear()
        with pytest.raises(ValueError, match="parametriz"):
            parametrize.remove_parametrizations(layer, "weight")
        door(layer, cls)
        with pytest.raises(ValueError, match="bias"):
            parametrize.remove_parametrizations(layer, "bias")
        with pytest.raises(KeyError, match="weight"):
            layer.register_buffer("weight", torch.ones(3))
        assert parametrize.is_parametrized(layer, "weight")


def test_unsafe_says_no_more_than_that_nothing_is_checked():
    layer = linear(-2.0)
    parametrize.register_parametrization(layer, "weight", CLASSES["exp"](), unsafe=True)
    torch.testing.assert_close(layer.weight.diagonal(), torch.full((3,), -2.0))
