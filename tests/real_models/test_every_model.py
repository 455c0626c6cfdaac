"""Models as people have them: retrofitted by pattern, trained, saved, averaged, baked, exported."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import negative_diagonals, plain_state_dict, remove_negative_diagonal
from tests.real_models.models import MODELS, Model, made, retrofitted
from tests.support.asserts import assert_negative
from tests.support.tables import LEADING, NAMED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def train(model: Model, module: nn.Module) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    x = model.sample()
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.read(module(x)).square().mean()
        # A pull the wrong way.
        loss = loss + sum((d - 1).square().sum() for _, d in negative_diagonals(module))
        loss.backward()
        optimizer.step()


def assert_registered_and_negative(model: Model, module: nn.Module) -> None:
    diagonals = dict(negative_diagonals(module))
    assert len(diagonals) == model.count
    for name, diagonal in diagonals.items():
        owner, _, tensor_name = name.rpartition(".")
        weight = getattr(module.get_submodule(owner), tensor_name)
        assert torch.equal(weight.diagonal(), diagonal)
        assert_negative(diagonal)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.mark.parametrize(
    ("model", "map"),
    [(name, LEADING) for name in MODELS] + [("ode", map_) for map_ in NAMED if map_ != LEADING],
    indirect=["model"],
)
def test_train_save_and_load(model, map, tmp_path):
    module = retrofitted(model, map)
    before = plain_state_dict(module)
    train(model, module)
    assert_registered_and_negative(model, module)
    after = plain_state_dict(module)
    assert list(after) == list(made(model).state_dict())
    for name, _ in negative_diagonals(module):
        assert not torch.equal(after[name], before[name])
    torch.save(module.state_dict(), tmp_path / "model.pt")
    other = retrofitted(model, map)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    module.eval(), other.eval()
    x = model.sample()
    torch.testing.assert_close(model.read(other(x)), model.read(module(x)))
    stock = made(model).eval()
    stock.load_state_dict(after, strict=True)
    torch.testing.assert_close(model.read(stock(x)), model.read(module(x)))
    again = retrofitted(model, map).eval()
    again.load_state_dict(stock.state_dict(), strict=True)
    torch.testing.assert_close(model.read(again(x)), model.read(module(x)))


def test_average(model):
    module = retrofitted(model)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(module)
    before = plain_state_dict(averaged.module)
    train(model, module)
    assert all(torch.equal(v, before[k]) for k, v in plain_state_dict(averaged.module).items())
    averaged.update_parameters(module)
    assert_registered_and_negative(model, averaged.module)
    train(model, averaged.module)
    assert_registered_and_negative(model, averaged.module)


def test_evaluate_from_a_cache(model):
    module = retrofitted(model, cache_in_eval=True).eval()
    x = model.sample()
    expected = model.read(module(x)).detach()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model.read(module(x)), expected)
        with parametrize.cached():
            torch.testing.assert_close(model.read(module(x)), expected)
    train(model, module.train())
    module.eval()
    uncached = copy.deepcopy(module)
    with torch.no_grad():
        torch.testing.assert_close(model.read(module(x)), model.read(uncached(x)))
        assert not model.read(module(x)).allclose(expected)


def test_bake(model):
    module = retrofitted(model).eval()
    x = model.sample()
    expected = model.read(module(x))
    baked = remove_negative_diagonal(copy.deepcopy(module), model.pattern)
    assert list(baked.state_dict()) == list(made(model).state_dict())
    assert [type(m) for m in baked.modules()] == [type(m) for m in made(model).modules()]
    torch.testing.assert_close(model.read(baked(x)), expected)
    assert_registered_and_negative(model, module)


def test_export(model):
    module = model.exported(retrofitted(model).eval())
    x = model.sample()
    with torch.no_grad():
        expected = model.read(module(x))
        again = torch.export.export(module, (x,), strict=False).module()
        torch.testing.assert_close(model.read(again(x)), expected)
        name, _ = next(negative_diagonals(module))
        owner, _, tensor_name = name.rpartition(".")
        original = f"{owner}.parametrizations.{tensor_name}.original"
        again.get_parameter(original).add_(0.5)
        # The exported model shares its parameters with the module.
        torch.testing.assert_close(model.read(again(x)), model.read(module(x)))
        assert not model.read(again(x)).allclose(expected)
