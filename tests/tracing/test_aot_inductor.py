"""A package of AOT inductor keeps the map."""

import shutil

import pytest
import torch
from torch import nn

from negdiag_param import register_negative_diagonal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_aot_inductor_keeps_the_map(tmp_path):
    module = register_negative_diagonal(nn.Conv1d(4, 4, 3, groups=2))
    x = torch.randn(1, 4, 6)
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        found = torch._inductor.aoti_load_package(package)(x)
        torch.testing.assert_close(found, module(x))
