"""How originals lie in memory, and kernels that have no center."""

import pytest
import torch

from negdiag_param import NegExpDiagonal
from tests.support.tables import MAKERS, every_maker


@every_maker
def test_the_inverse_never_aliases_and_keeps_the_memory_format(name):
    parametrization = MAKERS[name](infeasible="reflect")
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
