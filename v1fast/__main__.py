"""Entry point of the console script ``v1fast`` and of ``python -m v1fast``."""

import sys


def main() -> None:
    """Runs the command line; without the packages of the extra "cli" it says so and exits with code 1."""
    try:
        from v1fast.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit('v1fast: the command line needs the "cli" extra: pip install "v1fast[cli]"')
    app(prog_name="v1fast")


if __name__ == "__main__":
    main()
