"""Models as people have them: retrofitted by pattern, trained, saved, averaged, baked, exported."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
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


class RightHandSide(nn.Module):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(torch.zeros(()), x)


@dataclass(frozen=True)
class Model:
    make: Callable[[], nn.Module]
    pattern: str
    count: int
    sample: Callable[[], Tensor]
    read: Callable[[object], Tensor] = lambda output: output
    exported: Callable[[nn.Module], nn.Module] = lambda module: module


def tokens() -> Tensor:
    return torch.randint(0, 17, (2, 6), generator=torch.Generator().manual_seed(0))


MODELS = {
    "bert": Model(bert, "encoder.layer.*.dense.weight", 6, tokens, lambda o: o.last_hidden_state),
    "gpt2": Model(gpt2, "transformer.h.*.mlp.*.weight", 4, tokens, lambda o: o.logits),
    "ode": Model(
        Solved,
        "flow.linear.*",
        1,
        lambda: torch.ones(2, 3),
        # A solver branches on data, which no exporter takes: the right-hand side is exported.
        exported=lambda module: RightHandSide(module.flow),
    ),
}


def made(model: Model) -> nn.Module:
    torch.manual_seed(0)
    return model.make()


def retrofitted(model: Model, map="exp", **options) -> nn.Module:
    return register_negative_diagonal(made(model), model.pattern, map=map, **options)


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


def test_gpt2_ties_its_head_to_its_embedding():
    module = gpt2()
    before = module.lm_head.weight.clone()
    for pattern in ("*", "lm_head.weight", "transformer.wte.weight"):
        with pytest.raises(ValueError, match="tied") as error:
            register_negative_diagonal(module, pattern)
        assert "lm_head.weight" in str(error.value)
        assert "transformer.wte.weight" in str(error.value)
    assert torch.equal(module.lm_head.weight, before)
    assert module.lm_head.weight is module.transformer.wte.weight
    register_negative_diagonal(module, "transformer.h.*.c_fc.weight")
    assert module.lm_head.weight is module.transformer.wte.weight


def test_a_model_saves_itself_for_stock_code(tmp_path):
    from transformers import BertModel

    module = retrofitted(MODELS["bert"]).eval()
    module.save_pretrained(tmp_path, state_dict=plain_state_dict(module))
    stock = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    x = tokens()
    torch.testing.assert_close(stock(x).last_hidden_state, module(x).last_hidden_state)


def test_generation_uses_the_mapped_weights():
    module = retrofitted(MODELS["gpt2"]).eval()
    baked = remove_negative_diagonal(copy.deepcopy(module), MODELS["gpt2"].pattern)
    arguments = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    x = tokens()
    mask = torch.ones_like(x)
    found = module.generate(x, attention_mask=mask, **arguments)
    assert torch.equal(found, baked.generate(x, attention_mask=mask, **arguments))
