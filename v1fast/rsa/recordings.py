"""Published recordings and models for representational similarity analysis, from the folder V1FAST_REAL_DATA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from v1fast import _choices, _files
from v1fast.models.pretrained import MOUSE_V1, load_mouse_v1
from v1fast.rsa.layers import activations

SENSORIUM_IMAGE = (36, 64)
MODEL_NAMES = {"FaceBodyManmadeNatobj": "face/body/object", "V1": "V1 model"}


@dataclasses.dataclass(frozen=True)
class InferotemporalCortex:
    """92 images of objects in monkey and human IT (Kriegeskorte et al., Neuron 60, 2008).

    Attributes:
        monkey, human: the published matrices, [4186] each.
        subjects: [8, 4186], 4 humans x 2 sessions.
        models: name -> [4186].
        groups: [92], body, face, natural or artificial object of humans and animals.
    """

    monkey: NDArray[np.float64]
    human: NDArray[np.float64]
    subjects: NDArray[np.float64]
    models: dict[str, NDArray[np.float64]]
    groups: list[str]


def _mat(path: Path) -> dict[str, Any]:
    with _files.reading(path):
        return scipy.io.loadmat(path)


def _npy(path: Path) -> NDArray[Any]:
    with _files.reading(path):
        return np.load(path)


def kriegeskorte(folder: Path) -> InferotemporalCortex:
    """Load ``folder/kriegeskorte_rdms``, the demonstration files of rsatoolbox."""
    path = folder / "kriegeskorte_rdms"
    supplement = _mat(path / "Kriegeskorte_Neuron2008_supplementalData.mat")
    monkey, human = (_vector(rdm) for rdm in supplement["RDMs_mIT_hIT_fig1"]["RDM"][0])
    brains = _mat(path / "92_brainRDMs.mat")["RDMs"]["RDM"][0]
    models = _mat(path / "92_modelRDMs.mat")["Models"]
    names = [str(name[0]) for name in models["name"][0]]
    labels = [str(label[0]) for label in supplement["categoryLabels"][0]]
    members = dict(zip(labels, supplement["categoryVectors"].T.astype(bool), strict=True))
    return InferotemporalCortex(
        monkey,
        human,
        np.stack([_vector(rdm) for rdm in brains.flat]),
        # The monkey's matrix appears again among them.
        {MODEL_NAMES.get(k, k): _vector(m) for k, m in zip(names, models["RDM"][0], strict=True) if k != "monkeyIT"},
        _groups(members),
    )


def _vector(rdm: Any) -> NDArray[np.float64]:
    matrix = np.array(rdm, dtype=np.float64)
    if len(matrix) == 1:  # the pairs themselves, in MATLAB's order, which is the same
        return matrix[0]
    i, j = np.triu_indices(len(matrix), 1)  # some diagonals hold rounding errors
    return matrix[i, j]


def _groups(members: dict[str, NDArray[np.bool_]]) -> list[str]:
    """Return the names of the blocks of images."""
    human, body, face, natural = (members[key] for key in ("human", "body", "face", "natObj"))
    kinds = np.select([body, face, natural], ["bodies", "faces", "natural objects"], "artificial objects")
    owner = np.where(human, "human ", "animal ")
    return [
        f"{who}{kind}" if kind in ("bodies", "faces") else str(kind) for who, kind in zip(owner, kinds, strict=True)
    ]


def antolik(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Load mouse V1 by two-photon imaging (Antolik et al., PLoS Computational Biology 12, e1004927, 2016), first
    region.

    Returns:
        Responses [10 repeats, 50 images, 103 neurons], and the images [50, 31, 31].
    """
    path = folder / "antolik_mouse_v1"
    responses = _npy(path / "region1_raw_validation_set.npy")
    return responses, _npy(path / "region1_validation_inputs.npy").reshape(-1, 31, 31)


class MouseV1(nn.Module):
    """The released Sensorium model of 7776 neurons of mouse V1: [B, 1, 36, 64] images -> [B, 7776] responses."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.core, self.readout = load_mouse_v1(folder / MOUSE_V1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the expected responses."""
        responses: Tensor = F.elu(self.readout(self.core(images))) + 1
        return responses


def on_sensorium_screen(images: NDArray[Any]) -> Tensor:
    """Place square images [S, H, H] in the middle of a screen of 36 x 64 pixels with grey sides, [S, 1, 36, 64].

    Their pixels are z-scored together, like the model's training images.
    """
    given = torch.from_numpy(np.asarray(images, dtype=np.float32))[:, None]
    height, width = SENSORIUM_IMAGE
    square = F.interpolate((given - given.mean()) / given.std(), (height, height), mode="bilinear", antialias=True)
    beside = (width - height) // 2
    return F.pad(square, (beside, width - height - beside))


def model_activations(folder: Path, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return activations of the released model for square images: "core" and "neurons", [S, units] each."""
    found = activations(MouseV1(folder), on_sensorium_screen(images), ["core", ""], batch=16)
    return {"core": found["core"].numpy(), "neurons": found[""].numpy()}


ECKER_SESSIONS = 17


def ecker_conditions(
    folder: Path, session: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Load all conditions of a session of macaque V1, static gratings.

    Ecker et al., Science 327, 2010; Berens et al., J. Neurosci. 32, 2012.

    Args:
        folder: contains ``ecker_macaque_v1``.
        session: 0 .. 16.

    Returns:
        Spike counts from 30 to 530 ms [repeats, conditions, neurons], and the contrast (percent) and orientation
        (degrees) of each condition.
    """
    data = _mat(folder / "ecker_macaque_v1" / "data_v1_binned_static.mat")["data"][session, 0][0, 0]
    conditions = data["conditions"].ravel()
    contrasts, orientations = (
        np.array([float(np.squeeze(condition[key])) for condition in conditions]) for key in ("contrast", "orientation")
    )
    times = data["times"].ravel()
    counts = data["spikes"][:, :, (times > 30) & (times < 530)].sum(2, dtype=np.float64)  # [units, conditions, repeats]
    return counts.transpose(2, 1, 0), contrasts, orientations


def ecker(folder: Path, session: int, contrast: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Load one contrast of a session of macaque V1, see ``ecker_conditions``.

    Args:
        folder: contains ``ecker_macaque_v1``.
        session: 0 .. 16.
        contrast: in percent; a session has two.

    Returns:
        Spike counts [repeats, orientations, neurons], and the orientations in degrees.
    """
    counts, contrasts, orientations = ecker_conditions(folder, session)
    _choices.one_of("contrast", contrast, sorted(set(contrasts.tolist())))
    chosen = np.flatnonzero(contrasts == contrast)
    chosen = chosen[np.argsort(orientations[chosen])]
    return counts[:, chosen], orientations[chosen]
