"""Networks with separate parameters for each session."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from v1fast import _choices
from v1fast._config import Configured


def of_session(part: Any, data_key: str | None) -> Any:
    """Return the network of session ``data_key``, which may be None if there is only one; ``part`` itself serves all.

    Args:
        part: a ModuleDict of networks by session, or one network for all sessions.
        data_key: name of the session.

    Raises:
        KeyError: no such session.
    """
    if not isinstance(part, nn.ModuleDict):
        return part
    if data_key is None and len(part) == 1:
        return next(iter(part.values()))
    _choices.one_of("data_key", data_key, tuple(part), KeyError)
    return part[str(data_key)]


class PerSession(Configured, nn.ModuleDict):
    """One network per session, stored under its ``data_key``.

    Args:
        gamma: factor of the penalty.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self._gamma = gamma

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Initialise the networks of all sessions."""
        for network in self.values():
            initialize: Any = network.initialize
            initialize()

    def regularizer(self, data_key: str | None = None) -> Tensor | float:
        """Return the penalty of session ``data_key``, or of the only session.

        Raises:
            KeyError: no such session.
        """
        penalty: Tensor | float = of_session(self, data_key).regularizer() * self._gamma
        return penalty
