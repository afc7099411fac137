"""Sizes for simulated animals, and for a quick look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from v1fast.data import Preparation, simulate_animals
from v1fast.experiments.models import ModelSettings
from v1fast.experiments.sessions import Session, as_session

SMALL = ModelSettings(
    channels=12,
    layers=2,
    input_kern=9,
    hidden_kern=3,
    depth_separable=False,
    gamma_input=0.1,
    init_mu_range=0.3,
    init_sigma=0.3,
    penalties={"gaussian": 0.3, "factorized": 0.01, "pooled": 0.3, "dense": 0.01},
    learning_rate=0.015,
    dense_learning_rate=0.0003,
    batch_size=32,
    max_epochs=40,
    patience=4,
    lr_decay_steps=2,
    least_steps=10,
)
"""A model for small simulated animals: a fit takes seconds."""

TINY = replace(SMALL, channels=6, max_epochs=3, patience=2, lr_decay_steps=1, least_steps=4)
"""A model for a trial run: a fit takes a second."""


@dataclass(frozen=True)
class Simulated:
    """Sizes of simulated animals; see :func:`v1fast.data.simulate_animals`.

    Attributes:
        sessions: of each animal; with several, all its neurons are in all of them.
        channels: whether behaviour and pupil are channels of the images.
    """

    animals: int = 4
    neurons: int = 50
    image_shape: tuple[int, int] = (24, 36)
    train: int = 512
    validation: int = 80
    test: int = 30
    repeats: int = 8
    sessions: int = 1
    seed: int = 0
    channels: bool = False


QUICK = Simulated(animals=3, neurons=12, train=96, validation=24, test=12, repeats=4)
"""Few small animals, for a trial run of a minute: those of ``--quick``."""


def simulated_sessions(sizes: Simulated) -> Mapping[str, Session]:
    """Sessions of simulated animals by name; with several sessions of an animal, all have the same neurons."""
    drawn = simulate_animals(
        sizes.animals,
        sizes.neurons,
        sizes.image_shape,
        train=sizes.train,
        validation=sizes.validation,
        test=sizes.test,
        repeats=(sizes.repeats, sizes.repeats),
        sessions=sizes.sessions,
        matched=sizes.neurons if sizes.sessions > 1 else 0,
        channels=16,
        seed=sizes.seed,
    )
    preparation = Preparation(behavior_as_channels=sizes.channels, pupil_as_channels=sizes.channels)
    made = [as_session(one.to_recording(), preparation) for one in drawn]
    return {session.name: session for session in made}
