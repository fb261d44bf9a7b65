"""The command ``audiofuse-train``, and ``python -m audiofuse.trainer``, as torchrun wants it.

The processes that decode import the module that was started. This one holds nothing, so that none
of them imports PyTorch.
"""


def main() -> None:
    """Run the command."""
    from audiofuse.trainer.cli import main as run  # noqa: PLC0415 - see above

    run()


if __name__ == "__main__":
    main()
