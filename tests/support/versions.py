"""What a test needs: releases of PyTorch in which plain models work as well, and a compiler."""

import shutil

import pytest
import torch


def before(version: str, why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.__version__ < version, reason=f"before {version}, {why}")


HYBRID = before("2.9", "gloo cannot average, as HSDP has it do")
SHARDS = before("2.9", "fully_shard sums gradients over gloo instead of averaging them")
UNEVEN = before("2.10", "fully_shard refuses or misplaces uneven shards over tensor parallelism")
PIPELINES = before("2.12", "schedules hang or fail over gloo")
COMPILED_SHARDS = before("2.12", "the compiler does not trace where shards lie")
COPIED_SHARDS = before("2.9", "a registered distributed tensor cannot be copied")
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
