"""What is known of PyTorch's layers: groups, gates, and where a convolution has its centre."""

from typing import TypeAlias

from torch import nn
from typing_extensions import TypeIs

from negdiag_param._parametrization.options import Options

_Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def has_kernel(owner: nn.Module, tensor_name: str) -> TypeIs[_Convolution]:
    """Whether the tensor is the weight of a convolution, whose matrix is in dimensions 0 and 1."""
    return isinstance(owner, _Convolution) and tensor_name == "weight"


def blocks(owner: nn.Module, tensor_name: str) -> int:
    """How many matrices are stacked along the rows of a tensor: groups or gates."""
    if has_kernel(owner, tensor_name):
        return owner.groups
    if tensor_name.startswith("weight_hh"):
        return next((gates for cls, gates in _GATES.items() if isinstance(owner, cls)), 1)
    return 1


def check(owner: nn.Module, tensor_name: str, options: Options) -> None:
    """Refuses sparse gradients, and dilated even kernels where the diagonal is in the centre."""
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
            f"taps='all', which is no diagonal of its matrix"
        )
    if options.taps == "center":
        for size, dilation in zip(owner.kernel_size, owner.dilation, strict=True):
            if size % 2 == 0 and dilation > 1:  # the diagonal falls between two taps
                raise ValueError(
                    f"expected an odd kernel size where the dilation is above 1 for "
                    f"taps='center', got kernel_size={owner.kernel_size}, "
                    f"dilation={owner.dilation}, whose main diagonal no tap reaches"
                )
