"""Which entries are diagonal ones, told by their indices."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from negdiag_param import NegExpDiagonal
from tests.support.asserts import assert_negative
from tests.support.tables import CLASSES


def equal(i: tuple[int, ...]) -> bool:
    return i[0] == i[1]


WHERE: dict[str, tuple[tuple[int, ...], dict[str, Any], Callable[[tuple[int, ...]], bool]]] = {
    "square": ((3, 3), {}, equal),
    "wide": ((2, 4), {}, equal),
    "tall": ((4, 2), {}, equal),
    "swapped": ((3, 4), {"dims": (1, 0)}, equal),
    "kernels": ((3, 3, 2), {}, equal),
    "blocks": ((6, 2, 3), {"blocks": 2}, lambda i: i[0] % 3 == i[1]),
    "center": ((3, 3, 3), {"taps": "center"}, lambda i: equal(i) and i[2] == 1),
    "even center": ((3, 3, 4), {"taps": "center"}, lambda i: equal(i) and i[2] == 1),
    "centers of blocks": (
        (4, 2, 3, 2),
        {"blocks": 2, "taps": "center"},
        lambda i: i[0] % 2 == i[1] and i[2:] == (1, 0),
    ),
    "batch": ((2, 3, 4), {"dims": (-2, -1)}, lambda i: i[1] == i[2]),
    "vector": ((3,), {}, lambda _: True),
    "all": ((2, 3), {"dims": ()}, lambda _: True),
}


@pytest.mark.parametrize("case", WHERE)
def test_only_diagonal_entries_are_mapped(case):
    shape, options, is_diagonal = WHERE[case]
    parametrization = NegExpDiagonal(**options, infeasible="error")
    original = torch.full(shape, 0.5)
    expected = original.clone()
    for index in torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape)).tolist():
        if is_diagonal(tuple(index)):
            expected[tuple(index)] = -math.exp(0.5)
    weight = parametrization(original)
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(parametrization.right_inverse(weight), original)
    entries = parametrization.entries(original)
    assert entries.numel() == (expected < 0).sum()
    assert_negative(entries)


@pytest.mark.parametrize("name", CLASSES)
def test_the_inverse_never_aliases_and_keeps_the_memory_format(name):
    parametrization = CLASSES[name](infeasible="reflect")
    weight = -torch.rand(3, 3).add(0.1)
    assert parametrization.right_inverse(weight).data_ptr() != weight.data_ptr()
    assert parametrization.right_inverse(weight.T).is_contiguous()
    kernels = -torch.rand(4, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    found = parametrization.right_inverse(kernels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert parametrization(found).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 3, 0), (3, 3, 2, 0)], ids=str)
def test_the_center_of_a_kernel_needs_a_kernel(shape):
    parametrization = NegExpDiagonal(taps="center")
    for use in (parametrization, parametrization.right_inverse):
        with pytest.raises(ValueError, match=r"expected kernel dimensions after dims=\(0, 1\)"):
            use(-torch.ones(shape))
