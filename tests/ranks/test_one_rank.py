"""What goes wrong on one rank alone goes wrong on all, and nothing has changed anywhere."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.utils import parametrize

import negdiag_param
from negdiag_param import (
    NegativeDiagonal,
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.asserts import assert_exactly, plain, whole
from tests.ranks.harness import on
from tests.ranks.kinds import KINDS, build, mesh, size
from tests.ranks.models import make
from tests.support.tables import BUILT_IN

BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Moody(NegativeDiagonal):
    """A map that cannot invert -3, and at times dislikes whatever the last rank holds."""

    content = True

    def map(self, x: Tensor) -> Tensor:
        return -self.checked(x).exp()

    def inverse(self, d: Tensor) -> Tensor:
        return torch.where(d == -3.0, torch.nan, (-self.checked(d)).log())

    def checked(self, values: Tensor) -> Tensor:
        if not self.content:
            fail_on_the_last_rank()
        return values


def is_last() -> bool:
    return dist.get_rank() == dist.get_world_size() - 1


def fail_on_the_last_rank(*_: object) -> None:
    if is_last():
        raise RuntimeError("not in the mood")


def cut(kind: str = "tp", **options: object) -> nn.Sequential:
    """Columns of one layer and rows of the other on each rank; registered if there are options."""
    model = make(size(kind))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(-layer.weight.abs())  # which no option refuses
    return KINDS[kind].wrap(model, lambda m: register(m, **options) if options else m)


exp = partial(cut, map="exp")


def register(model: nn.Module, **options: object) -> nn.Module:
    return register_negative_diagonal(model, "*weight", **options)


def spoil(tensor: DTensor, value: float = torch.nan) -> DTensor:
    """Puts it onto the diagonal where the last rank holds it: in its last row and column."""
    if is_last():
        tensor.detach().to_local()[-1, -1] = value
    return tensor


def spoiled(tensor: Tensor, value: float = torch.nan) -> DTensor:
    return spoil(-tensor.detach().abs(), value)


REASONS = {
    "nan": (torch.nan, {}, "finite diagonal, got [1-9]"),
    "infinity": (-torch.inf, {}, "finite diagonal, got [1-9]"),
    "infeasible": (2.0, {"infeasible": "error"}, "negative diagonal, got [1-9]"),
    "inverse": (-3.0, {"map": Moody}, "inverse|that all ranks can invert"),
}


# A model, what fails, and what the error says if it is not only that the last rank failed.
Row = tuple[nn.Module, Callable[[], object], str | None]


def row(make: Callable, fail: Callable[[nn.Module], object], message: str | None = None) -> Row:
    model = make()
    return model, partial(fail, model), message


def there(reason: str) -> Row:
    bad, options, message = REASONS[reason]
    model = cut()
    spoil(model[2].weight, bad)
    return model, partial(register, model, **options), rf"2\.weight: .*({message}).* on rank 1"


def given(kind: str, call: str, reason: str) -> Row:
    bad, options, message = REASONS[reason]
    model = cut(kind, **{"map": "exp", **options})
    value = spoiled(model[0].parametrizations.weight.original, bad)
    first = bad if dist.get_rank() == 0 else -1.0  # whose draw counts
    fail = {
        "assign": lambda: setattr(model[0], "weight", value),
        "load": lambda: model.load_state_dict({**plain_state_dict(model), "0.weight": value}),
        "init_": lambda: init_(model, "*.weight", nn.init.constant_, first),
    }[call]
    return model, fail, message if call == "init_" else f"({message}).* rank 1"


def bare(cls: type[NegativeDiagonal], way: str) -> Row:
    """The class, PyTorch's way."""
    model = cut()
    register = partial(parametrize.register_parametrization, model[0], "weight")
    if way == "assigned":
        register(cls(infeasible="reflect"))
    value = spoiled(model[0].weight)
    if way == "registered":
        spoil(model[0].weight)
    fail = {
        "assigned": lambda: setattr(model[0], "weight", value),
        "registered": lambda: register(cls()),
        "inverted": lambda: cls().right_inverse(value),
        "misfit": lambda: cls().right_inverse(uneven().weight),
    }[way]
    return model, fail, None


def uneven() -> nn.Module:
    """With shards of which only the last is not as torch.chunk would have it."""
    layer = nn.Linear(7, 7, bias=False)
    rows = torch.ones(2 if is_last() else 4, 7)
    shards = DTensor.from_local(rows, mesh("tp"), [Shard(0)], shape=(7, 7), stride=(7, 1))
    layer.weight = nn.Parameter(shards)
    return layer


def moody(*beside: nn.Module) -> nn.Sequential:
    model = cut(map=Moody)
    for layer in (model[0], model[2]):
        layer.parametrizations.weight[0].content = False
        layer.parametrizations.weight.extend(beside)
    return model


def load_plain(model: nn.Module) -> None:
    """What each rank has gathered."""
    state = plain(model)
    if is_last():
        state["2.weight"].fill_diagonal_(torch.nan)
    model.load_state_dict(state)


def load_plain_of_the_first_rank(model: nn.Module) -> None:
    state = plain(model)
    state["2.weight"][0, 0] = torch.nan
    set_model_state_dict(model, state if dist.get_rank() == 0 else {}, options=BROADCAST)


def load_registered(model: nn.Module) -> None:
    state, other = model.state_dict(), cut(map="softplus").state_dict()
    key = "2.parametrizations.weight.0._extra_state"
    model.load_state_dict({**state, key: (other if is_last() else state)[key]})


CALLS = [(kind, call) for kind in ("tp", "fsdp2") for call in ("assign", "load", "init_")]
MAPS = {"NegativeDiagonal": Moody, **{cls.__name__: cls for cls in BUILT_IN.values()}}
WAYS = ("registered", "assigned", "inverted", "misfit")
ROWS: dict[str, dict[str, Callable[[], Row]]] = {
    "register_negative_diagonal": {
        **{f"{k}, {c}, {r}": partial(given, k, c, r) for k, c in CALLS for r in REASONS},
        **{f"there, {reason}": partial(there, reason) for reason in REASONS},
        "uneven shards": lambda: row(uneven, register),
        "map": lambda: row(cut, partial(register, map=type("", (Moody,), {"content": False}))),
        "plain": lambda: row(exp, load_plain),
        "plain, first rank": lambda: row(
            partial(build, "fsdp2"), load_plain_of_the_first_rank, r"2\.weight: expected a finite"
        ),
        "registered": lambda: row(exp, load_registered),
    },
    "remove_negative_diagonal": {
        "map": lambda: row(moody, lambda model: remove_negative_diagonal(model, "*.weight"))
    },
    "init_": {
        "map": lambda: row(moody, lambda model: init_(model, "*.weight", nn.init.eye_)),
        "initializer": lambda: row(exp, lambda m: init_(m, "*", fail_on_the_last_rank)),
    },
    "negative_diagonals": {
        "map": lambda: row(partial(moody, nn.Identity()), lambda m: list(negative_diagonals(m)))
    },
    **{name: {way: partial(bare, cls, way) for way in WAYS} for name, cls in MAPS.items()},
}
# It reads what each rank holds, and nobody waits for anybody.
LOCAL = {"plain_state_dict"}


def test_every_public_name_is_in_the_table() -> None:
    assert {*ROWS, *LOCAL} == {*negdiag_param.__all__}


def contents(model: nn.Module) -> tuple[list[object], list[Tensor]]:
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    types = [type(p) for p in model.parameters()]
    held = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [kinds, list(model.state_dict()), types], [p.detach().clone() for p in held]


@pytest.mark.parametrize(("name", "way"), [(name, way) for name in ROWS for way in ROWS[name]])
@on(2)
def test_all_ranks_raise_and_none_has_changed(name: str, way: str) -> None:
    model, fail, message = ROWS[name][way]()
    before, held = contents(model)
    if message is None:
        message = "" if is_last() else "rank 1"
    with pytest.raises((ValueError, RuntimeError), match=f"(?s){message}"):
        fail()
    after, still_held = contents(model)
    assert after == before
    assert_exactly(still_held, held)
    dist.barrier()  # where all ranks come to


@on(2)
def test_a_read_of_what_each_rank_holds_keeps_nobody_waiting() -> None:
    model = moody()
    with pytest.raises(RuntimeError) if is_last() else nullcontext():
        plain_state_dict(model)
    dist.barrier()


@on(2)
def test_a_warning_is_everybodys_and_counts_replicas_once() -> None:
    model = build("fsdp2")
    value = spoiled(model[0].parametrizations.weight.original, 2.0)
    with pytest.warns(UserWarning, match="1 of 7 entries"):
        model[0].weight = value
    assert whole(model[0].weight)[-1, -1] == -2
    module = nn.Module()
    module.weight = nn.Parameter(DTensor.from_local(-torch.ones(3, 3), mesh("tp"), [Replicate()]))
    register_negative_diagonal(module)
    bad = DTensor.from_local(torch.full((3, 3), torch.nan), mesh("tp"), [Replicate()])
    with pytest.raises(ValueError, match="got 3 of 3 entries NaN"):
        module.weight = bad
