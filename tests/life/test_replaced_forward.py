"""What others put in place of a forward, on the list or the parametrization, is honoured."""

import copy
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from negdiag_param import negative_diagonals, register_negative_diagonal
from tests.support.modules import stock


def forward_of_its_own(module):
    plain = module.forward
    module.forward = MethodType(lambda self, *args: 2 * plain(*args), module)


def forward_hook(module):
    module.register_forward_hook(lambda *_: 2 * _[-1])


def global_hook(module):
    return nn.modules.module.register_module_forward_hook(
        lambda called, _, output: 2 * output if called is module else None
    )


@pytest.mark.parametrize("where", ["parametrizations.weight", "parametrizations.weight.0"])
@pytest.mark.parametrize("replace", [forward_of_its_own, forward_hook, global_hook])
def test_a_forward_or_hook_of_others_is_honoured(replace, where):
    layer = register_negative_diagonal(nn.Linear(4, 4))
    expected = 2 * layer.weight.detach()
    handle = replace(layer.get_submodule(where))
    try:
        assert torch.equal(layer.weight, expected)
        ((_, diagonal),) = negative_diagonals(layer)
        assert torch.equal(diagonal, expected.diagonal())
        with parametrize.cached():
            assert torch.equal(layer.weight, expected)
    finally:
        if handle is not None:
            handle.remove()


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self):
        return 2 * self.inner()


def test_a_list_within_a_wrapper_is_honoured():
    layer = register_negative_diagonal(nn.Linear(4, 4))
    expected = 2 * layer.weight.detach()
    layer.parametrizations["weight"] = Doubled(layer.parametrizations["weight"])
    assert torch.equal(layer.weight, expected)


OFFLOADED = {
    "cpu": lambda accelerate, model, _: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk": lambda accelerate, model, path: accelerate.disk_offload(
        model, str(path), execution_device="cpu"
    ),
    "dispatched": lambda accelerate, model, path: accelerate.dispatch_model(
        model, {"0": "cpu", "1": "cpu", "2": "disk"}, main_device="cpu", offload_dir=str(path)
    ),
}


@pytest.mark.slow
@pytest.mark.integration("accelerate")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("offload", OFFLOADED.values(), ids=OFFLOADED)
def test_offloaded_weights_are_used(offload, tmp_path):
    import accelerate

    model = register_negative_diagonal(stock(), "*.weight")
    expected = copy.deepcopy(model)
    x = torch.ones(2, 4)
    offload(accelerate, model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))
        for (_, found), (_, diagonal) in zip(
            negative_diagonals(model), negative_diagonals(expected), strict=True
        ):
            torch.testing.assert_close(found, diagonal)
