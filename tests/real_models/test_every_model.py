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
    pytest.mark.integration("transformers", "torchdiffeq"),
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


@pytest.mark.parametrize(
    ("name", "map"),
    [(name, LEADING) for name in MODELS] + [("ode", kind) for kind in NAMED if kind != LEADING],
)
def test_a_model_is_trained_averaged_saved_and_baked(name, map, tmp_path):
    model = MODELS[name]
    module, x = retrofitted(model, map), model.sample()
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    before = plain_state_dict(module)
    averaged.update_parameters(module)
    train(model, module)
    averaged.update_parameters(module)
    for each in (module, averaged.module):
        assert_registered_and_negative(model, each)
    after = plain_state_dict(module)
    assert list(after) == list(made(model).state_dict())
    for key, _ in negative_diagonals(module):
        assert not torch.equal(after[key], before[key])
    expected = model.read(module.eval()(x))
    torch.save(module.state_dict(), tmp_path / "model.pt")
    loaded, stock, again = retrofitted(model, map), made(model), retrofitted(model, map)
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    stock.load_state_dict(after, strict=True)
    again.load_state_dict(stock.state_dict(), strict=True)
    baked = remove_negative_diagonal(copy.deepcopy(module), model.pattern)
    assert [type(part) for part in baked.modules()] == [type(part) for part in stock.modules()]
    for other in (loaded, stock, again, baked):
        torch.testing.assert_close(model.read(other.eval()(x)), expected)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_is_evaluated_from_a_cache(model):
    module = retrofitted(model, cache_in_eval=True).eval()
    x = model.sample()
    expected = model.read(module(x)).detach()
    with torch.no_grad():
        torch.testing.assert_close(model.read(module(x)), expected)
        with parametrize.cached():
            torch.testing.assert_close(model.read(module(x)), expected)
    train(model, module.train())
    uncached = copy.deepcopy(module.eval())
    with torch.no_grad():
        torch.testing.assert_close(model.read(module(x)), model.read(uncached(x)))
        assert not model.read(module(x)).allclose(expected)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_is_exported(model):
    module = model.exported(retrofitted(model).eval())
    x = model.sample()
    with torch.no_grad():
        expected = model.read(module(x))
        again = torch.export.export(module, (x,), strict=False).module()
        torch.testing.assert_close(model.read(again(x)), expected)
        name, _ = next(negative_diagonals(module))
        owner, _, tensor_name = name.rpartition(".")
        # The exported model shares its parameters with the module.
        original = again.get_parameter(f"{owner}.parametrizations.{tensor_name}.original")
        original.diagonal().sub_(0.5)
        torch.testing.assert_close(model.read(again(x)), model.read(module(x)))
        assert not model.read(again(x)).allclose(expected)
