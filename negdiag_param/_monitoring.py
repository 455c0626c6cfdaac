"""Reading the diagonals of a whole model."""

from collections.abc import Iterator

from torch import Tensor, nn

from negdiag_param import _attachment, _sharded, _targets


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
    for name, owner, tensor_name in _targets.registered(model):
        parametrization = _attachment.ours(owner)[tensor_name]
        chain = _attachment.chain(owner, tensor_name)
        if len(chain) == 1:
            yield name, parametrization.entries(chain.original)
        else:
            yield name, parametrization.diagonal.view(_sharded.whole(getattr(owner, tensor_name)))
