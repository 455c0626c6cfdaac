"""Random lives: a state machine registers, trains, copies, breaks and removes, in any order.

After each step the module is held against plain tensors that the machine keeps. The suite runs a
few hundred short lives, always the same ones. Thousands, others at each run, are run by

    python -m tests.life.test_random_lives --lives 5000 [--steps 30] [--seed 1]

which prints how many lives and operations there were, and the shortest life that shows a fault.
"""

import argparse
import copy
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

from negdiag_param import (
    init_,
    negative_diagonals,
    plain_state_dict,
    register_negative_diagonal,
    remove_negative_diagonal,
)
from tests.support.asserts import assert_only_diagonal_differs, assert_same_bits, first, sample
from tests.support.modules import Half
from tests.support.slots import INFERRED, KINDS, Slot, interrupted_before
from tests.support.state import state_of
from tests.support.tables import CLASSES, DTYPES, MAPS

# A Ctrl-C at the end of a with block leaves gradients off, which these put right.
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.05),
    "Adam": partial(torch.optim.Adam, lr=0.1),
    "fused": partial(torch.optim.AdamW, lr=0.1, fused=True),
}
BAD = {"nan": "entries NaN", "shape": "expected", "dtype": "expected a tensor of"}

numbers, flags, modes = st.integers(0, 99), st.booleans(), st.sampled_from([*MODES])
stops = st.none() | st.integers(1, 600)  # the line of the package before which Ctrl-C is pressed
changes = rule(number=numbers, mode=modes, stop=stops)
registrations = st.fixed_dictionaries({
    "map": st.sampled_from([*MAPS]),
    "margin": st.sampled_from([0.0, 0.1, 0.5]),
    "infeasible": st.sampled_from(["warn", "reflect", "error"]),
    "cache_in_eval": flags,
})


class Lives(RuleBasedStateMachine):
    """One life of a module."""

    counts: ClassVar[Counter[str]] = Counter()

    @initialize(kind=st.sampled_from([*KINDS]), number=numbers, transposed=flags)
    def is_born(self, kind, number, transposed):
        self.counts["lives"] += 1
        torch.manual_seed(number)
        self.layer, self.inferred = KINDS[kind][0], INFERRED.get(kind, {})
        self.root, self.stock, self.prefix = self.layer.make(), self.layer.make(), ""
        for tensor in self.root.parameters() if transposed else ():
            tensor.data = tensor.data.transpose(0, -1).contiguous().transpose(0, -1)
        tensors = self.root.state_dict()
        slots = [Slot(layer, tensors[layer.tensor_name].clone()) for layer in KINDS[kind]]
        self.slots = {slot.name: slot for slot in slots}
        self.base = {path: type(part) for path, part in self.root.named_modules()}
        self.adopted: set[str] = set()  # the paths of owners that have a class of ours
        self.frozen, self.was_normed, self.in_order, self.in_block = False, False, True, False
        self.optimizer = self.saved = self.witness = None
        self.block = ExitStack()

    def teardown(self):
        self.block.close()

    # Where things are

    def pick(self, number: int) -> Slot:
        return [*self.slots.values()][number % len(self.slots)]

    @property
    def dtype(self) -> torch.dtype:
        return self.pick(0).value.dtype

    def inner(self, root: nn.Module | None = None) -> nn.Module:
        """The module within its wrapper."""
        return (root or self.root).get_submodule(self.prefix.rstrip("."))

    def owner(self, slot: Slot, root: nn.Module | None = None) -> nn.Module:
        return self.inner(root).get_submodule(slot.path)

    def read(self, slot: Slot, root: nn.Module | None = None) -> Tensor:
        return getattr(self.owner(slot, root), slot.key)

    def originals(self, slot: Slot) -> list[Tensor]:
        """What the optimizer trains: for a plain tensor itself."""
        if not slot.is_parametrized:
            return [self.read(slot)]
        found = self.owner(slot).parametrizations[slot.key]
        return [*found.parameters(recurse=False), *found.buffers(recurse=False)]

    def busy(self) -> set[str]:
        """The paths of owners with anything parametrized."""
        return {slot.path for slot in self.slots.values() if slot.is_parametrized}

    def is_ours(self) -> bool:
        """Whether all of those have met the helper, and every list has a part of ours."""
        foreign = any(slot.normed and not slot.map for slot in self.slots.values())
        return self.busy() <= self.adopted and not foreign

    def has_plain_state(self) -> bool:
        return not any(slot.halves or slot.normed for slot in self.slots.values())

    # What is held after each step

    def settle(self, slot: Slot, wanted: Tensor | None = None) -> None:
        """Takes over a value that has changed, if it is what the originals should give."""
        with torch.no_grad():
            slot.value = self.read(slot).clone()
            slot.check(self.originals(slot), slot.value)
        if wanted is not None:
            eps = torch.finfo(wanted.dtype).eps
            torch.testing.assert_close(slot.value, wanted, rtol=64 * eps, atol=eps)
            if not slot.normed:
                assert_only_diagonal_differs(slot.value, wanted, slot.layer.diagonal)

    @invariant()
    def reads_the_same_in_every_way(self):
        self.counts["operations"] += 1
        plain = plain_state_dict(self.root) if self.has_plain_state() else {}
        assert not plain or plain.keys() == {self.prefix + key for key in self.stock.state_dict()}
        cached = parametrize.cached if self.is_ours() and not self.in_block else nullcontext
        for name, slot in self.slots.items():
            weight = self.read(slot)
            assert weight.requires_grad == (slot.is_parameter and not self.frozen)
            found = [weight, plain.get(self.prefix + name, weight)]
            for mode in (torch.no_grad, torch.inference_mode, cached):
                with mode():
                    found += [self.read(slot), self.read(slot)]
            for each in found:
                assert_same_bits(each, slot.value)
            slot.check_diagonal()
        for slot, value in self.witness[1] if self.witness else ():
            assert_same_bits(self.read(slot, self.witness[0]), value)

    @invariant()
    def computes_as_a_stock_module_does(self):
        with torch.no_grad():
            self.check_output(self.layer.run(self.root))

    def check_output(self, output: Tensor, **changed: Tensor) -> None:
        values = {name: slot.value for name, slot in self.slots.items()}
        values = self.inner().state_dict() | values | changed
        for name, tensor in self.stock.state_dict(keep_vars=True).items():
            tensor.data = values[name].clone()
        if self.dtype.itemsize > 2:
            torch.testing.assert_close(output, self.layer.run(self.stock).detach(), equal_nan=True)

    @invariant()
    def leaves_nothing_behind(self):
        registered = {self.prefix + name: slot for name, slot in self.slots.items() if slot.map}
        found = dict(negative_diagonals(self.root))
        assert found.keys() == registered.keys()
        for name, slot in registered.items():
            assert torch.equal(found[name], slot.layer.diagonal(slot.value))
        for path in self.base.keys() - self.busy():
            part = self.inner().get_submodule(path)
            assert type(part) is self.base[path]
            assert "parametrizations" not in dict(part.named_children())
            hooks = {key for key, value in vars(part).items() if "_hooks" in key and value}
            assert not hooks or self.was_normed
        if not self.busy() and self.in_order:
            assert [*self.inner().state_dict()] == [*self.stock.state_dict()]

    # What happens

    def attempt(self, act: Callable[[], Any], mode: str, stop: int | None = None) -> bool:
        """Whether it was done. If it is interrupted, it must be done wholly or not at all."""
        before = None if stop is None else state_of(self.root)
        try:
            with warnings.catch_warnings(), MODES[mode](), interrupted_before(stop):
                warnings.simplefilter("ignore", UserWarning)
                act()
        except KeyboardInterrupt:
            self.counts["interrupted"] += 1
            return state_of(self.root) != before
        return True

    def refused(self, act: Callable[[], Any], match: str, mode: str = "grad") -> None:
        """It raises an error, and everything is as before."""
        self.counts["refused"] += 1
        before = state_of(self.root)
        with pytest.raises((ValueError, TypeError), match=match):
            self.attempt(act, mode)
        assert state_of(self.root) == before

    @rule(options=registrations, number=numbers, mode=modes, stop=stops)
    def register(self, options, number, mode, stop):
        slot = self.pick(number)
        given = {**options, **slot.layer.options, "map": MAPS[options["map"]]}
        act = partial(register_negative_diagonal, self.root, self.prefix + slot.name, **given)
        after = replace(slot, **{key: options[key] for key in ("map", "margin", "infeasible")})
        if slot.map:
            self.refused(act, "expected a tensor not registered yet", mode)
        elif after.is_refused(slot.value):
            self.refused(act, "expected a", mode)
        elif self.attempt(act, mode, stop):
            self.slots[slot.name] = after
            self.adopted.add(slot.path)
            self.settle(after, after.reflected(slot.value))

    @rule(number=numbers, map=st.sampled_from([*CLASSES]), margin=st.sampled_from([0.0, 0.5]))
    def register_with_pytorch(self, number, map, margin):
        slot = self.pick(number)
        if not slot.map:
            self.leave_the_block()
            options = {"infeasible": "reflect", **slot.layer.options, **self.inferred}
            made = CLASSES[map](margin, **options)
            parametrize.register_parametrization(self.owner(slot), slot.key, made)
            after = replace(slot, map=map, margin=margin, infeasible="reflect")
            self.slots[slot.name], self.in_order = after, False
            # PyTorch does not ask for an inverse where there is a parametrization already.
            self.settle(after, None if slot.normed else after.reflected(slot.value))

    @rule(number=numbers)
    def parametrize_otherwise(self, number):
        slot = self.pick(number)
        if slot.map and slot.halves < 2:
            parametrize.register_parametrization(self.owner(slot), slot.key, Half())
            slot.halves += 1
            self.settle(slot, slot.value / 2)
        elif not slot.is_parametrized and slot.is_parameter and slot.value.ndim > 1:
            self.leave_the_block()
            parametrizations.weight_norm(self.owner(slot), slot.key)
            slot.normed, self.was_normed, self.in_order = True, True, False
            self.settle(slot, slot.value)

    @changes
    def remove(self, number, mode, stop):
        slot = self.pick(number)
        act = partial(remove_negative_diagonal, self.root, self.prefix + slot.name)
        if not slot.map:
            self.refused(act, "expected a tensor registered", mode)
        elif self.attempt(act, mode, stop):
            self.is_removed(slot, slot.value)

    @rule(number=numbers, leave=flags)
    def remove_with_pytorch(self, number, leave):
        slot = self.pick(number)
        if slot.is_parametrized and not (slot.normed and self.frozen):
            original, leave = self.originals(slot)[0].detach().clone(), leave or slot.normed
            parametrize.remove_parametrizations(self.owner(slot), slot.key, leave)
            self.in_order = False
            self.is_removed(slot, slot.value if leave else original)

    def is_removed(self, slot, value):
        self.slots[slot.name] = Slot(slot.layer, value)
        self.adopted &= self.busy()

    @rule(
        kind=st.sampled_from(["feasible", "any", "zero", *BAD]),
        by_init=flags,
        number=numbers,
        mode=modes,
        stop=stops,
    )
    def assign(self, kind, by_init, number, mode, stop):
        slot = self.pick(number)
        value, checked = slot.drawn(kind, number), slot.path in self.adopted
        act = partial(setattr, self.owner(slot), slot.key, value)
        if by_init and slot.map and kind not in ("shape", "dtype"):
            act = partial(init_, self.root, self.prefix + slot.name, lambda t: t.copy_(value))
        if not slot.map:
            if not slot.normed and kind not in BAD:
                trained = slot.is_parameter and not self.frozen
                parameter = nn.Parameter(value, trained) if slot.is_parameter else value
                setattr(self.owner(slot), slot.key, parameter)
                self.settle(slot, value)
        elif kind in BAD:
            if checked:
                self.refused(act, BAD[kind], mode)
        elif slot.is_refused(value):
            self.refused(act, "expected a", mode)
        elif self.attempt(act, mode, stop if checked else None):
            self.settle(slot, slot.reflected(value))

    @changes
    def reset(self, number, mode, stop):
        owner, path = self.owner(self.pick(number)), self.pick(number).path
        if self.is_ours() and hasattr(owner, "reset_parameters"):
            torch.manual_seed(number)
            self.stock.get_submodule(path).reset_parameters()
            torch.manual_seed(number)
            if self.attempt(owner.reset_parameters, mode, stop):
                for slot in self.slots.values():
                    if slot.path == path:
                        # Out of their order, tensors get each other's random numbers.
                        wanted = slot.reflected(self.stock.get_parameter(slot.name))
                        self.settle(slot, wanted if self.in_order else None)

    @rule(number=numbers)
    def write_in_place(self, number):
        slot = self.pick(number)
        with torch.no_grad():
            self.originals(slot)[-1].add_(0.5 - number / 99)
        self.settle(slot)

    @rule(kind=st.sampled_from([*OPTIMIZERS]), number=numbers, again=flags)
    def step(self, kind, number, again):
        """A step moves the originals as it moves plain tensors, but for the projection."""
        if self.frozen or self.dtype.itemsize == 2:
            return
        parameters = [*self.root.parameters()]
        known = self.optimizer and [*map(id, self.optimizer.param_groups[0]["params"])]
        again = again and known == [*map(id, parameters)]
        self.optimizer = self.optimizer if again else OPTIMIZERS[kind](parameters)
        self.optimizer.zero_grad()
        slots = [slot for slot in self.slots.values() if slot.is_parameter]
        slopes = [slot.drawn("any", number) for slot in slots]
        sum((self.read(s) * slope).sum() for s, slope in zip(slots, slopes, strict=True)).backward()
        plain = []
        for slot, slope in zip(slots, slopes, strict=True):
            x = self.originals(slot)[0]
            plain.append(nn.Parameter(x.detach().clone()))
            expected = x.grad if slot.normed else slope / 2**slot.halves
            plain[-1].grad = torch.empty_like(x).copy_(expected)
            assert x.grad.isfinite().all()
            assert_only_diagonal_differs(x.grad, expected, slot.layer.diagonal)
        self.optimizer.step()
        OPTIMIZERS[kind](plain).step()
        for slot, expected in zip(slots, plain, strict=True):
            self.settle(slot)
            if not again and not slot.normed:
                where, x = slot.layer.diagonal, self.originals(slot)[0].detach()
                assert_only_diagonal_differs(x, expected, where)
                if slot.map == "clamp":  # projected, bit for bit
                    highest = where(x).max()
                    assert_same_bits(where(x), where(expected.detach()).clamp(max=highest))

    @rule(train=flags, freeze=flags)
    def switch(self, train, freeze):
        self.frozen = freeze
        self.root.train(train).requires_grad_(not freeze)

    @rule()
    def enter_a_cached_block(self):
        if self.is_ours() and not self.in_block:
            self.block.enter_context(parametrize.cached())
            self.in_block = True

    @rule()
    def leave_the_block(self):
        self.block.close()
        self.in_block = False

    @rule(pickled=flags, go_on=flags)
    def replicate(self, pickled, go_on):
        # The hook that weight_norm leaves behind cannot be pickled.
        if self.is_ours() and not (self.was_normed and pickled):
            other = pickle.loads(pickle.dumps(self.root)) if pickled else copy.deepcopy(self.root)
            self.root, other = (other, self.root) if go_on else (self.root, other)
            self.witness = other, [(slot, slot.value) for slot in self.slots.values()]

    @rule(dtype=st.sampled_from(DTYPES))
    def cast(self, dtype):
        state = self.state()
        tensors = {key: state[key].to(dtype) for key in state if "_extra_state" not in key}
        if all(tensor.isfinite().all() for tensor in tensors.values()):
            self.root.to(dtype)
            self.stock.to(dtype)
            self.optimizer = None  # its averages are not cast
            for key, tensor in tensors.items():
                assert_same_bits(self.root.state_dict()[key], tensor)
            for slot in self.slots.values():
                self.settle(slot)

    @rule()
    def go_to_meta_and_back(self):
        if self.is_ours():
            state = self.state()
            assert self.root.to("meta") is self.root
            assert all(self.read(slot).is_meta for slot in self.slots.values())
            self.root.to_empty(device="cpu").load_state_dict(state)

    @rule()
    def wrap_or_unwrap(self):
        self.root = self.root[0] if self.prefix else nn.Sequential(self.root)
        self.prefix = "" if self.prefix else "0."
        self.witness = self.saved = None

    @rule(number=numbers)
    def call_with_another_original(self, number):
        slot = self.pick(number)
        if slot.map and not slot.normed and self.dtype.itemsize > 2:
            inside = f"parametrizations.{slot.key}.original"
            name = self.prefix + ".".join(filter(None, [slot.path, inside]))
            with torch.no_grad():
                x = self.originals(slot)[0] - 0.25
                weight = self.owner(slot).parametrizations[slot.key][0](x) / 2**slot.halves
                slot.check([x], weight)
                given = (sample(self.layer).to(self.dtype),)
                output = first(functional_call(self.root, {name: x}, given))
            self.check_output(output, **{slot.name: weight})

    # Checkpoints

    def state(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.root.state_dict().items()}

    def signature(self) -> object:
        kept = [(s.map, s.margin, s.normed, s.halves) for s in self.slots.values()]
        return kept, self.dtype

    def another(self, number: int, map: str = "") -> nn.Module:
        """A new module: a stock one, or one parametrized in the same way but for the map."""
        torch.manual_seed(number)
        root = nn.Sequential(self.layer.make()) if self.prefix else self.layer.make()
        for slot in self.slots.values() if map else ():
            owner = self.owner(slot, root)
            if slot.normed:
                parametrizations.weight_norm(owner, slot.key)
            if slot.map:
                options = {"map": MAPS[map], "margin": slot.margin, **slot.layer.options}
                register_negative_diagonal(owner, slot.key, **options)
            for _ in range(slot.halves):
                parametrize.register_parametrization(owner, slot.key, Half())
        return root.to(self.dtype)

    def load(self, other: nn.Module, strict: bool, mode: str, error: str, kept: set[str]) -> None:
        """Loads the state of ``other``, all but what is ``kept``, with an error if there is one."""
        values = {name: self.read(slot, other).detach() for name, slot in self.slots.items()}
        load = partial(self.root.load_state_dict, other.state_dict(), strict=strict)
        with pytest.raises(RuntimeError, match=error) if error else nullcontext():
            self.attempt(load, mode)
        for name in self.slots.keys() - kept:
            self.settle(self.slots[name], self.slots[name].reflected(values[name]))

    @rule(number=numbers, strict=flags, mode=modes, foreign=flags)
    def load_plain(self, number, strict, mode, foreign):
        if self.is_ours():
            other, slot = self.another(number), self.pick(number)
            values = {name: self.read(s, other).detach() for name, s in self.slots.items()}
            kept = {name for name, s in self.slots.items() if s.map and s.is_refused(values[name])}
            error = "expected a" if kept else ""
            if foreign and slot.map and slot.is_parameter and slot.value.ndim > 1:
                if slot.normed or kept:
                    return
                parametrizations.weight_norm(self.owner(slot, other), slot.key)
                kept, error = {slot.name}, "Missing key" if strict else ""
            self.load(other, strict, mode, error, kept)

    @rule(number=numbers)
    def load_into_stock(self, number):
        if self.has_plain_state():
            other = self.another(number)
            other.load_state_dict(plain_state_dict(self.root))
            for slot in self.slots.values():
                assert_same_bits(self.read(slot, other), slot.value)

    @rule(number=numbers, strict=flags, mode=modes)
    def load_of_another_map(self, number, strict, mode):
        kind = [*MAPS][number % len(MAPS)]
        if self.is_ours() and self.busy() and all(s.map != kind for s in self.slots.values()):
            kept = {name for name, slot in self.slots.items() if slot.map}
            other = self.another(number, kind)
            self.load(other, strict, mode, "expected a checkpoint of", kept)

    @rule()
    def save(self):
        values = [slot.value for slot in self.slots.values()]
        self.saved = self.signature(), self.state(), values

    @rule(marked=flags, strict=flags, mode=modes)
    def load_again(self, marked, strict, mode):
        if self.saved and self.saved[0] == self.signature() and (marked or self.is_ours()):
            _, state, values = self.saved
            state = {k: v for k, v in state.items() if marked or not k.endswith("_extra_state")}
            self.attempt(partial(self.root.load_state_dict, state, strict=strict), mode)
            for slot, value in zip(self.slots.values(), values, strict=True):
                self.settle(slot)
                assert_same_bits(slot.value, value)


def live(lives: int, steps: int, derandomize: bool) -> None:
    chosen = settings(
        max_examples=lives,
        stateful_step_count=steps,
        derandomize=derandomize,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
    )
    run(Lives, settings=chosen)


def test_short_lives():
    live(200, 12, derandomize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random lives of registered modules.")
    parser.add_argument("--lives", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        seeded(chosen.seed)(Lives)
        live(chosen.lives, chosen.steps, derandomize=False)
    finally:
        counts = ", ".join(f"{count} {what}" for what, count in Lives.counts.items())
        print(f"{counts}, with --seed {chosen.seed}")
