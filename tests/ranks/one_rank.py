"""Ways in which one rank alone fails in a public function: a model, and what fails on it."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.utils import parametrize

from negdiag_param import (
    NegativeDiagonal,
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.ranks.layouts import BUILT_IN
from tests.ranks.models import EVEN, PLAN, make, world

Row = Callable[[], tuple[nn.Module, Callable[[], object]]]


class Moody(NegativeDiagonal):
    """A map that comes to dislike what the last rank holds."""

    content = True

    def map(self, x: Tensor) -> Tensor:
        return -self.checked(x).exp()

    def inverse(self, d: Tensor) -> Tensor:
        return (-self.checked(d)).log()

    def checked(self, values: Tensor) -> Tensor:
        if not self.content:
            fail_on_the_last_rank()
        return values


class Moodier(Moody):
    content = False


class Zero(nn.Module):
    """Another parametrization beside ours."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0


def is_last() -> bool:
    return dist.get_rank() == dist.get_world_size() - 1


def fail_on_the_last_rank(*_: object) -> None:
    if is_last():
        raise RuntimeError("not in the mood")


def cut(map: object = None) -> nn.Sequential:
    """Columns of one layer and rows of the other on each rank; registered if there is a map."""
    model = parallelize_module(make(EVEN), world(), PLAN)
    return register_negative_diagonal(model, "*.weight", map=map) if map else model


def spoil(tensor: DTensor) -> DTensor:
    """Puts a NaN onto the diagonal where the last rank holds it: in its last row and column."""
    with torch.no_grad():
        if is_last():
            tensor.to_local()[-1, -1] = torch.nan
    return tensor


def spoiled(tensor: Tensor) -> DTensor:
    return spoil(tensor.detach().clone())


def uneven() -> nn.Linear:
    """With shards of which only the last is not as torch.chunk would have it."""
    layer = nn.Linear(7, 7, bias=False)
    rows = torch.ones(2 if is_last() else 4, 7)
    shards = DTensor.from_local(rows, world(), [Shard(0)], shape=(7, 7), stride=(7, 1))
    layer.weight = nn.Parameter(shards)
    return layer


def registering(model: nn.Module, **options: object) -> tuple[nn.Module, Callable[[], object]]:
    return model, lambda: register_negative_diagonal(model, "*weight", **options)


def with_spoiled(model: nn.Sequential) -> nn.Sequential:
    spoil(model[2].weight)
    return model


def assigning() -> tuple[nn.Module, Callable[[], object]]:
    model = cut("exp")
    value = spoiled(model[0].weight)
    return model, lambda: setattr(model[0], "weight", value)


def loading(key: str, change: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Callable[[], object]]:
    """A checkpoint of the model itself with another entry, on the last rank or in its shard."""
    model = cut("exp")
    state = plain_state_dict(model) if key == "2.weight" else model.state_dict()
    return model, lambda: model.load_state_dict({**state, key: change(state[key])})


def nan_in_the_whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor()
    return full.fill_diagonal_(torch.nan) if is_last() else full


def another_mark(mark: Tensor) -> Tensor:
    return next(iter(nonlinear().state_dict().values())) if is_last() else mark


def nonlinear() -> nn.Module:
    return register_negative_diagonal(nn.Linear(2, 2), map="softplus").parametrizations.weight[0]


def in_a_mood(then: Callable[[nn.Module], object], beside: nn.Module | None = None) -> Row:
    def row() -> tuple[nn.Module, Callable[[], object]]:
        model = cut(Moody)
        for layer in (model[0], model[2]):
            layer.parametrizations.weight[0].content = False
            if beside:
                layer.parametrizations.weight.append(beside)
        return model, lambda: then(model)

    return row


def parametrizing(cls: type[NegativeDiagonal]) -> dict[str, Row]:
    """The bare class, PyTorch's way."""

    def registered_and_assigned() -> tuple[nn.Module, Callable[[], object]]:
        model = cut()
        parametrize.register_parametrization(model[0], "weight", cls(infeasible="reflect"))
        value = spoiled(model[0].weight)
        return model, lambda: setattr(model[0], "weight", value)

    def registered() -> tuple[nn.Module, Callable[[], object]]:
        layer = with_spoiled(cut())[2]
        return layer, lambda: parametrize.register_parametrization(layer, "weight", cls())

    def inverted() -> tuple[nn.Module, Callable[[], object]]:
        model = cut()
        return model, lambda: cls().right_inverse(spoiled(model[0].weight))

    return {f.__name__: f for f in (registered_and_assigned, registered, inverted)}


MARK = "2.parametrizations.weight.0._extra_state"
ROWS: dict[str, dict[str, Row]] = {
    "register_negative_diagonal": {
        "nan": lambda: registering(with_spoiled(cut())),
        "uneven shards": lambda: registering(uneven()),
        "map": lambda: registering(cut(), map=Moodier),
        "assigned": assigning,
        "plain checkpoint": lambda: loading("2.weight", spoiled),
        "plain checkpoint, gathered": lambda: loading("2.weight", nan_in_the_whole),
        "registered checkpoint": lambda: loading(MARK, another_mark),
    },
    "remove_negative_diagonal": {
        "map": in_a_mood(lambda model: remove_negative_diagonal(model, "*.weight")),
    },
    "init_": {
        "initializer": lambda: (m := cut("exp"), lambda: init_(m, "*", fail_on_the_last_rank)),
        "map": in_a_mood(lambda model: init_(model, "*.weight", nn.init.eye_)),
    },
    "negative_diagonals": {
        "beside another": in_a_mood(lambda model: list(negative_diagonals(model)), Zero()),
    },
    "NegativeDiagonal": parametrizing(Moody),
    **{cls.__name__: parametrizing(cls) for cls in BUILT_IN},
}
