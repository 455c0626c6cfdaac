"""What a test needs: releases of PyTorch in which plain models work as well, and a compiler."""

import shutil

import pytest
import torch


def before(version: str, why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.__version__ < version, reason=f"before {version}, {why}")


RESUMES = before("2.9", "PyTorch resumes no optimizer on another number of ranks")
HYBRID = before("2.9", "gloo cannot average, as HSDP has it do")
PIPELINES = before("2.9", "schedules hang or fail over gloo")
COMPILED_SHARDS = before("2.9", "the compiler does not trace where shards lie")
COPIED_SHARDS = before("2.9", "a registered distributed tensor cannot be copied")
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
