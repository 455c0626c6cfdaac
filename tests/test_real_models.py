"""Models as people have them: retrofitted by pattern, trained, saved, averaged, baked, exported."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from negdiag_param import (
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import assert_negative
from tests.support.tables import LEADING, NAMED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration("transformers", "torchdiffeq"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=17, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=8,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=17, n_positions=8, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class Flow(nn.Module):
    """dx/dt = A x + B tanh(x), with an A that damps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        self.coupling = nn.Linear(3, 3)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.linear(x) + self.coupling(x.tanh())


class Solved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow()

    def forward(self, x: Tensor) -> Tensor:
        from torchdiffeq import odeint

        times = torch.linspace(0, 1, 4)
        return odeint(self.flow, x, times, method="rk4", options={"step_size": 0.25})


class Model(NamedTuple):
    make: Callable[[], nn.Module]
    pattern: str
    count: int
    sample: Callable[[], Tensor]
    read: Callable[[object], Tensor] = lambda output: output

    def made(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def retrofitted(self, map: str = LEADING, **options: object) -> nn.Module:
        return register_negative_diagonal(self.made(), self.pattern, map=map, **options)


def tokens() -> Tensor:
    return torch.randint(0, 17, (2, 6), generator=torch.Generator().manual_seed(0))


MODELS = {
    "bert": Model(bert, "encoder.layer.*.dense.weight", 6, tokens, lambda o: o.last_hidden_state),
    "gpt2": Model(gpt2, "transformer.h.*.mlp.*.weight", 4, tokens, lambda o: o.logits),
    "ode": Model(Solved, "flow.linear.*", 1, lambda: torch.ones(2, 3)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


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


@pytest.mark.parametrize(
    ("name", "map"),
    [(name, LEADING) for name in MODELS] + [("ode", kind) for kind in NAMED if kind != LEADING],
)
def test_a_model_is_trained_averaged_saved_and_baked(name, map, tmp_path):
    model = MODELS[name]
    module, x = model.retrofitted(map), model.sample()
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    before = plain_state_dict(module)
    averaged.update_parameters(module)
    train(model, module)
    averaged.update_parameters(module)
    for each in (module, averaged.module):
        diagonals = dict(negative_diagonals(each))
        assert len(diagonals) == model.count
        for name, diagonal in diagonals.items():
            owner, _, tensor_name = name.rpartition(".")
            weight = getattr(each.get_submodule(owner), tensor_name)
            assert torch.equal(weight.diagonal(), diagonal)
            assert_negative(diagonal)
    after = plain_state_dict(module)
    assert list(after) == list(model.made().state_dict())
    for key, _ in negative_diagonals(module):
        assert not torch.equal(after[key], before[key])
    expected = model.read(module.eval()(x))
    torch.save(module.state_dict(), tmp_path / "model.pt")
    loaded, stock, again = model.retrofitted(map), model.made(), model.retrofitted(map)
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    stock.load_state_dict(after, strict=True)
    again.load_state_dict(stock.state_dict(), strict=True)
    baked = remove_negative_diagonal(copy.deepcopy(module), model.pattern)
    assert [type(part) for part in baked.modules()] == [type(part) for part in stock.modules()]
    for other in (loaded, stock, again, baked):
        torch.testing.assert_close(model.read(other.eval()(x)), expected)


@every_model
def test_a_model_is_exported(model):
    module, given = model.retrofitted().eval(), (model.sample(),)
    if model.make is Solved:  # which branches on data, as no exporter takes it
        module, given = module.flow, (torch.zeros(()), *given)
    with torch.no_grad():
        expected = model.read(module(*given))
        again = torch.export.export(module, given, strict=False).module()
        torch.testing.assert_close(model.read(again(*given)), expected)
        name, _ = next(negative_diagonals(module))
        owner, _, tensor_name = name.rpartition(".")
        # The exported model shares its parameters with the module.
        original = again.get_parameter(f"{owner}.parametrizations.{tensor_name}.original")
        original.diagonal().sub_(0.5)
        torch.testing.assert_close(model.read(again(*given)), model.read(module(*given)))
        assert not model.read(again(*given)).allclose(expected)


def test_a_model_saves_itself_for_stock_code(tmp_path):
    from transformers import BertModel

    module, x = MODELS["bert"].retrofitted().eval(), tokens()
    module.save_pretrained(tmp_path, state_dict=plain_state_dict(module))
    stock = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    torch.testing.assert_close(stock(x).last_hidden_state, module(x).last_hidden_state)
