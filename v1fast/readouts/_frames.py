"""Videos: every frame is an image."""

from __future__ import annotations

from torch import Tensor


def check_map(x: Tensor, channels: int, height: int, width: int) -> None:
    """Raise ValueError unless the features are [B, C, H, W] or [B, C, T, H, W] of these sizes."""
    want = (channels, height, width)
    if x.dim() not in (4, 5) or (x.shape[1], *x.shape[-2:]) != want:
        axes = "[B, C, H, W] or [B, C, T, H, W]"
        raise ValueError(f"features: want {axes} with (C, H, W) = {want}, got {tuple(x.shape)}")


def fold_frames(x: Tensor, shift: Tensor | None = None, as_stored: bool = False) -> tuple[Tensor, Tensor | None]:
    """Make the frames of videos [B, C, T, H, W] images [B T, C, H, W], each with a shift. Images stay as they are.

    Of ``channels_last_3d`` features this is a view. Others are copied once, into the kernels' fastest layout.

    Args:
        x: features.
        shift: [B, 2], for videos also [B, T, 2]; B and T may be 1.
        as_stored: copy contiguous features into contiguous images, which takes less time for a few.

    Raises:
        ValueError: the shift of a video has another shape. (The op checks that of images.)
    """
    if x.dim() != 5:
        return x, shift
    batch, frames = x.shape[0], x.shape[2]
    if as_stored and x.is_contiguous():
        images = x.transpose(1, 2).flatten(0, 1)
    else:
        images = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
    if shift is None:
        return images, None
    each = shift.unsqueeze(1) if shift.dim() == 2 else shift
    if each.dim() != 3 or each.shape[0] not in (1, batch) or each.shape[1] not in (1, frames) or each.shape[2] != 2:
        raise ValueError(
            f"shift: want [B, 2] = ({batch}, 2) or [B, T, 2] = ({batch}, {frames}, 2), got {tuple(shift.shape)}"
        )
    return images, each.expand(batch, frames, 2).flatten(0, 1)


def unfold_frames(out: Tensor, x: Tensor, axis: int = -2) -> Tensor:
    """Undo ``fold_frames(x)`` in a result: for videos, split the axis of images into batch and frames."""
    return out.unflatten(axis, (x.shape[0], x.shape[2])) if x.dim() == 5 else out
