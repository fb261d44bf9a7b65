"""The command ``audiofuse-train``, and ``python -m audiofuse.trainer``, as torchrun wants it.

The processes that decode import the module that was started. This one holds nothing, so that none
of them imports PyTorch.
"""

import sys


def main() -> None:
    """Run the command."""
    try:
        from audiofuse.trainer.cli import main as run  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "audiofuse":
            raise
        sys.exit(f"audiofuse-train: {error}; training needs: pip install 'audiofuse[train]'")
    run()


if __name__ == "__main__":
    main()
