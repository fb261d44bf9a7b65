"""The command that says what is wrong and what to do: ``audiofuse doctor --help``."""

from dataclasses import asdict

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.options import Json, print_json
from audiofuse.workers.commands.terminal.screen import Screen


def doctor(*, as_json: Json = False) -> None:
    """Look at all that a deployment needs, and say what is wrong and what to do.

    Exit code 1 if anything is wrong; warnings alone are 0.
    """
    from audiofuse.workers.commands.terminal.display import checks_table
    from audiofuse.workers.deployment.doctor import Verdict, examine

    checks = list(examine(Settings()))
    if as_json:
        print_json([asdict(each) for each in checks])
    else:
        Screen().print(checks_table(checks))
    wrong = [each.name for each in checks if each.verdict is Verdict.WRONG]
    if wrong:
        raise AudiofuseError(f"wrong: {', '.join(wrong)}")
