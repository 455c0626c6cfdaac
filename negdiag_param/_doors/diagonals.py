"""Reading the diagonals of a whole model."""

from collections.abc import Iterator

from torch import Tensor, nn

from negdiag_param._doors import targets
from negdiag_param._doors.targets import Target
from negdiag_param._life import lookup
from negdiag_param._private import is_just_forward


def negative_diagonals(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterates over the name and the diagonal of every registered tensor of a model.

    In plain words: use it to log the diagonals during training, or to penalise them. They are
    differentiable and cost O(n) each, since the rest of the weight is not computed.

    Args:
        model: any module; its registered tensors are found within it.

    Returns:
        An iterator over the name of the tensor and its diagonal, shaped as ``weight.diagonal()``
        for a matrix. A distributed tensor is gathered for it, so every rank has to take part.
        Wrappers such as ``torch.compile`` do not change the names. Empty if nothing is registered.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> model = register_negative_diagonal(model, "*.weight")
        >>> [(name, tuple(diagonal.shape)) for name, diagonal in negative_diagonals(model)]
        [('0.weight', (2,)), ('2.weight', (2,))]
        >>> sum(diagonal.square().sum() for _, diagonal in negative_diagonals(model)).backward()
    """
    found = targets.every(targets.checked(model, "model"))
    return ((target.name, _diagonal(target)) for target in found if target.is_registered)


def _diagonal(target: Target) -> Tensor:
    owner, tensor_name = target.owner, target.tensor_name
    parametrization = lookup.ours(owner)[tensor_name]
    targets.check_whole(target)
    if lookup.is_alone(owner, tensor_name) and all(
        map(is_just_forward, (lookup.lists(owner)[tensor_name], parametrization))
    ):
        return parametrization.entries(target.stored[0])
    return parametrization.options.diagonal.view(targets.gathered(target))
