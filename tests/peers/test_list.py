"""Which classes are held against a published one, and why the others are not."""

import importlib
import pkgutil

import pytest
import torch
from neuralpredictors.layers import readouts as neuralpredictors
from openretina.modules.readout import factorized, factorized_gaussian, gaussian
from peers import side_by_side

from v1fast import readouts

pytestmark = side_by_side.QUIET

# By the names of the peer's classes, which are v1fast's too.
COMPARED = {
    neuralpredictors: (
        "AttentionReadout",
        "ClonedReadout",
        "DeterministicGaussian2d",
        "FullFactorized2d",
        "FullGaussian2d",
        "FullSXF",
        "Gaussian2d",
        "Gaussian3d",
        "MultiReadoutBase",
        "MultiReadoutSharedParametersBase",
        "PointPooled2d",
        "PointPyramid2d",
        "SpatialTransformerPooled3d",
        "SpatialXFeatureLinear",
        "UltraSparse",
    ),
    factorized: ("FactorizedReadout", "KlindtReadoutWrapper3D"),
    factorized_gaussian: ("GaussianMaskReadout",),
    gaussian: ("PointGaussianReadout",),
}
KEYS_ALONE = {"RemappedGaussian2d": "neuralpredictors' returns nothing"}
NOT_COMPARED = {
    "ConfigurationError": "no layer",
    "DenseReadout": "v1fast's own",
    "FullPointPooled2d": "v1fast's own",
    "GeneralizedFullGaussianReadout2d": "not in a published neuralpredictors",
    "GeneralizedPointPooled2d": "not in a published neuralpredictors",
    "Readout": "no layer",
    "SeparableReadout": "minimodel is not published as a package",
    "SpatialTransformerPooled2d": "another name of PointPooled2d",
    "SpatialTransformerPyramid2d": "another name of PointPyramid2d",
}


def test_every_public_name_is_in_the_list():
    compared = [name for names in COMPARED.values() for name in names]
    assert sorted([*compared, *KEYS_ALONE, *NOT_COMPARED]) == sorted(readouts.__all__)
    assert all(hasattr(module, name) for module, names in COMPARED.items() for name in names)
    for name, why in NOT_COMPARED.items():
        assert "not in a published" not in why or not hasattr(neuralpredictors, name)


def test_remapped_gaussian_has_the_peers_keys():
    for layers in (1, 2, 3):
        mine, peer = (
            module.RemappedGaussian2d((8, 9, 13), 60, bias=True, remap_layers=layers, remap_kernel=5)
            for module in (readouts, neuralpredictors)
        )
        side_by_side.move(mine, peer)
        assert torch.equal(mine.remap_field[0].weight, peer.remap_field[0].weight)


NOT_IMPORTABLE = {"old_readouts"}  # which imports a module that neuralpredictors 0.3.0 has not
SUBMODULES = {module.name for module in pkgutil.iter_modules(neuralpredictors.__path__)} - NOT_IMPORTABLE


@pytest.mark.parametrize("name", sorted(SUBMODULES))
def test_every_public_name_of_every_submodule(name):
    theirs = importlib.import_module(f"{neuralpredictors.__name__}.{name}")
    mine = importlib.import_module(f"v1fast.readouts.{name}")
    of_readouts = [
        key
        for key, value in vars(theirs).items()
        if not key.startswith("_") and getattr(value, "__module__", "").startswith(neuralpredictors.__name__)
    ]
    assert of_readouts
    assert [key for key in of_readouts if not hasattr(mine, key)] == []


def test_what_is_not_importable():
    for name in NOT_IMPORTABLE:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{neuralpredictors.__name__}.{name}")
