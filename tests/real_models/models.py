"""Models as people have them, with the pattern that retrofits each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from negdiag_param import register_negative_diagonal


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


def retrofitted(model: Model, map="clamp", **options) -> nn.Module:
    return register_negative_diagonal(made(model), model.pattern, map=map, **options)
