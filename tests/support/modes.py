"""Switches of PyTorch that hold for the whole process, thrown for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch

T = TypeVar("T")


@contextmanager
def switched(switch: Callable[[T], object], there: T, back: T) -> Iterator[None]:
    switch(there)
    try:
        yield
    finally:
        switch(back)


@contextmanager
def flushing(on: bool = True) -> Iterator[None]:
    """With subnormal numbers read as zero."""
    if on and not torch.set_flush_denormal(True):
        pytest.skip("cannot flush subnormals here")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
