"""Networks of which each session has its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from v1fast import _choices


class PerSession(nn.ModuleDict):
    """One network per session, stored under its ``data_key``.

    Args:
        gamma: factor of the penalty.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self._gamma = gamma

    def of(self, data_key: str | None) -> Any:
        """Return the network of session ``data_key``, which may be None if there is only one session.

        Raises:
            KeyError: no such session.
        """
        if data_key is None and len(self) == 1:
            return next(iter(self.values()))
        _choices.one_of("data_key", data_key, tuple(self), KeyError)
        return self[str(data_key)]

    def initialize(self, **kwargs: Any) -> None:
        """Initialise the networks of all sessions."""
        for network in self.values():
            initialize: Any = network.initialize
            initialize()

    def regularizer(self, data_key: str | None = None) -> Tensor | float:
        """Return the penalty of session ``data_key``, or of the only session.

        Raises:
            KeyError: no such session.
        """
        penalty: Tensor | float = self.of(data_key).regularizer() * self._gamma
        return penalty
