"""Writing files."""

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write at once: whoever reads ``path`` meanwhile, or after a crash, sees the old content or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
