"""Loading checkpoints whose convolutions and batch norms have other biases than the core."""

from typing import Any

from torch import Tensor, nn

from v1fast._warnings import warn_caller


def adapt_biases(core: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let ``core`` load a checkpoint with other biases than its own; a hook to run before ``load_state_dict``.

    A convolution without a bias is one whose bias is 0, so zeros are put into ``state_dict`` where a whole layer of the
    checkpoint has none. Where the checkpoint has a bias for which the core has no parameter, the core gets one.
    """
    added = []
    for name, layer in core.get_submodule("features").named_children():
        path = f"{prefix}features.{name}."
        added += _adapt_convolutions(layer, state_dict, path)
        added += _adapt_norm(layer, state_dict, path)
    if added:
        warn_caller(
            f"the checkpoint has {len(added)} parameters that this core was built without ({added[0]}, ...); they were "
            "added. An optimiser made before loading does not hold them: make it afterwards, or build the core with "
            "the bias and conv_bias of the checkpoint."
        )


def _adapt_convolutions(layer: nn.Module, state_dict: dict[str, Tensor], path: str) -> list[str]:
    convolutions = {f"{path}{name}.": m for name, m in layer.named_modules() if isinstance(m, nn.Conv2d)}
    if not any(f"{at}bias" in state_dict for at in convolutions):
        for at, convolution in convolutions.items():
            weight = state_dict.get(f"{at}weight")
            if convolution.bias is not None and weight is not None:
                state_dict[f"{at}bias"] = weight.new_zeros(weight.shape[0])
        return []
    added = [at for at, convolution in convolutions.items() if convolution.bias is None]
    for at in added:
        weight = convolutions[at].weight
        convolutions[at].bias = nn.Parameter(weight.detach().new_zeros(weight.shape[0]), weight.requires_grad)
    return [f"{at}bias" for at in added]


def _adapt_norm(layer: nn.Module, state_dict: dict[str, Tensor], path: str) -> list[str]:
    """Give a batch norm its own scale and bias if the checkpoint's has them; they take the place of separate layers."""
    norm = getattr(layer, "norm", None)
    wanted = [f"{path}norm.weight", f"{path}norm.bias"]
    if not isinstance(norm, nn.BatchNorm2d) or norm.affine or not all(key in state_dict for key in wanted):
        return []
    like = next(layer.parameters())
    norm.affine = True
    norm.weight = nn.Parameter(like.detach().new_ones(norm.num_features), like.requires_grad)
    norm.bias = nn.Parameter(like.detach().new_zeros(norm.num_features), like.requires_grad)
    for name in ("scale", "bias"):
        if hasattr(layer, name):
            delattr(layer, name)
    return wanted
