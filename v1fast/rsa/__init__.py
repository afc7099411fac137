"""Representational similarity analysis."""

from v1fast.rsa.files import rdm_to_file

__all__ = ["rdm_to_file"]
