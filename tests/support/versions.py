"""What fails in old releases of PyTorch, most of it on plain models as well."""

import pytest
import torch


def before(version: str, why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.__version__ < version, reason=f"before {version}, {why}")


RESUMES = before("2.9", "PyTorch resumes no optimizer on another number of ranks")
HYBRID = before("2.9", "gloo cannot average, as HSDP has it do")
PIPELINES = before("2.9", "schedules hang or fail over gloo")
COMPILED_SHARDS = before("2.9", "the compiler does not trace where shards lie")
COPIED_SHARDS = before("2.9", "a registered distributed tensor cannot be copied")
