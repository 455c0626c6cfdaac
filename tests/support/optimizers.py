"""Optimizers that step in ways of their own."""

from collections.abc import Callable
from functools import partial

from torch import nn, optim

Make = Callable[[list[nn.Parameter]], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": partial(optim.SGD, lr=0.1),
    "sgd, decay": partial(optim.SGD, lr=0.1, weight_decay=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "sgd, fused": partial(optim.SGD, lr=0.1, fused=True),
    "adam": partial(optim.Adam, lr=0.1),
    "adam, foreach": partial(optim.Adam, lr=0.1, foreach=True),
    "adam, fused": partial(optim.Adam, lr=0.1, fused=True),
    "adam, amsgrad": partial(optim.Adam, lr=0.1, amsgrad=True),
    "adamw": partial(optim.AdamW, lr=0.1, weight_decay=0.1),
    "adamw, fused": partial(optim.AdamW, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": partial(optim.RMSprop, lr=0.1, momentum=0.5),
    "nadam": partial(optim.NAdam, lr=0.1),
    "adagrad": partial(optim.Adagrad, lr=0.1),
    "adagrad, fused": partial(optim.Adagrad, lr=0.1, fused=True),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["muon"] = partial(optim.Muon, lr=0.1)
