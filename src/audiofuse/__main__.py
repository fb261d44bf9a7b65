"""``python -m audiofuse`` is the command ``audiofuse``."""

from audiofuse.workers.commands.main import main

main()
