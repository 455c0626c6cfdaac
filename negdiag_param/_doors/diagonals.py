"""Reading the diagonals of a whole model."""

from collections.abc import Iterator

from torch import Tensor, nn

from negdiag_param._doors import targets
from negdiag_param._life import lookup
from negdiag_param._ranks import dtensor


def negative_diagonals(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterates over the name and the diagonal of every registered tensor of a model.

    In plain words: what you log during training, or penalise: the diagonals are differentiable,
    and cost O(n) each, since the rest of the weight is not computed.

    Args:
        model: any module; its registered tensors are found within it.

    Yields:
        The name of the tensor and its diagonal, shaped as ``weight.diagonal()`` for a matrix.
        A distributed tensor is gathered for it, so every rank has to take part.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> model = register_negative_diagonal(model, "*.weight")
        >>> [(name, tuple(diagonal.shape)) for name, diagonal in negative_diagonals(model)]
        [('0.weight', (2,)), ('2.weight', (2,))]
        >>> sum(diagonal.square().sum() for _, diagonal in negative_diagonals(model)).backward()
    """
    for target in targets.registered(model):
        parametrization = lookup.ours(target.owner)[target.tensor_name]
        if lookup.is_alone(target.owner, target.tensor_name):
            yield target.name, parametrization.entries(target.stored[0])
        else:
            diagonal = parametrization.options.diagonal
            yield target.name, diagonal.view(dtensor.whole(target.tensor))
