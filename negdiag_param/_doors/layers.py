"""Facts about PyTorch's layers: convolutions have groups and kernels, RNNs have gates."""

from typing import TypeAlias

from torch import Tensor, nn
from typing_extensions import TypeIs

from negdiag_param._parametrization.invert import summary
from negdiag_param._parametrization.options import Options

_Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_STACKS = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.MultiheadAttention: 3}


def has_kernel(owner: nn.Module, tensor_name: str) -> TypeIs[_Convolution]:
    """Whether the tensor is the weight of a convolution, whose matrix is in dimensions 0 and 1."""
    return isinstance(owner, _Convolution) and tensor_name == "weight"


def blocks(owner: nn.Module, tensor_name: str) -> int:
    """How many matrices are stacked along the rows of a tensor: groups or gates."""
    if has_kernel(owner, tensor_name):
        return owner.groups
    return _stacked(owner) if tensor_name.startswith("weight_hh") else 1


def check(owner: nn.Module, tensor_name: str, options: Options, value: Tensor) -> None:
    """Refuses layers whose gradients, dimensions or kernels do not suit."""
    gates, unsaid = _stacked(owner), options.blocks is None and options.dims is None
    # Inputs are not the units themselves, so a diagonal of gates' inputs is meant only if said so.
    if gates > 1 and unsaid and tensor_name.startswith(("weight_ih", "in_proj_weight")):
        raise ValueError(
            f"expected blocks, as {gates} matrices are stacked in {tensor_name}, got none; "
            f"{summary(value)}; pass blocks={gates} for a diagonal in each"
        )
    if options.dims is None and value.ndim > 2 and not has_kernel(owner, tensor_name):
        raise ValueError(
            f"expected dims, such as dims=(-2, -1), for a tensor of {value.ndim} "
            f"dimensions, got none; {summary(value)}"
        )
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.sparse:
        raise ValueError(
            f"expected a layer with dense gradients, got {type(owner).__name__}("
            f"sparse=True); make it with sparse=False"
        )
    if not has_kernel(owner, tensor_name):
        return
    if options.dominance and options.taps == "all":
        raise ValueError(
            f"expected taps='center' for dominance={options.dominance!r} of a convolution, got "
            f"taps='all', which is not the diagonal of its matrix; {summary(value)}"
        )
    kernel = zip(owner.kernel_size, owner.dilation, strict=True)
    if options.taps == "center" and any(size % 2 == 0 and step > 1 for size, step in kernel):
        raise ValueError(
            f"expected an odd kernel size where the dilation is above 1 for taps='center', got "
            f"kernel_size={owner.kernel_size}, dilation={owner.dilation}, whose main diagonal "
            f"no tap reaches"
        )


def _stacked(owner: nn.Module) -> int:
    return next((number for cls, number in _STACKS.items() if isinstance(owner, cls)), 1)
