"""What is known of PyTorch's layers: groups, gates, and where a convolution has its centre."""

from torch import nn

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def has_kernel(owner: nn.Module, tensor_name: str) -> bool:
    """Whether the tensor is the weight of a convolution, whose matrix is in dimensions 0 and 1."""
    return isinstance(owner, _CONVOLUTIONS) and tensor_name == "weight"


def blocks(owner: nn.Module, tensor_name: str) -> int:
    """How many matrices are stacked along the rows of a tensor: groups or gates."""
    if isinstance(owner, _CONVOLUTIONS) and tensor_name == "weight":
        return owner.groups
    if tensor_name.startswith("weight_hh"):
        return next((gates for cls, gates in _GATES.items() if isinstance(owner, cls)), 1)
    return 1


def check_gradient(owner: nn.Module) -> None:
    """Refuses layers with sparse gradients: those of an original are dense."""
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.sparse:
        raise ValueError(
            f"expected a layer with dense gradients, got {type(owner).__name__}("
            f"sparse=True); make it with sparse=False"
        )


def check_center(owner: nn.Module, tensor_name: str) -> None:
    """Refuses a dilated even kernel: the diagonal of its matrix falls between two taps."""
    if not (isinstance(owner, _CONVOLUTIONS) and tensor_name == "weight"):
        return
    for size, dilation in zip(owner.kernel_size, owner.dilation, strict=True):
        if size % 2 == 0 and dilation > 1:
            raise ValueError(
                f"expected an odd kernel size where the dilation is above 1 for "
                f"taps='center', got kernel_size={owner.kernel_size}, dilation={owner.dilation}, "
                f"whose main diagonal no tap reaches"
            )
