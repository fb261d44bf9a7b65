"""Alerts: promtool's unit tests, a runbook paragraph for each, and commands in it that exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from audiofuse.core.errors import Reason
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.commands.main import cli

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RUNBOOK = (DEPLOY / "runbook.md").read_text()
PARAGRAPHS = dict(re.findall(r"^### (\w+)\n\n(.+?)(?=\n\n#|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
COMMAND = re.compile(r"`(audiofuse [^`]+)`")

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs Prometheus's promtool"
)


def _alerts() -> dict[str, dict[str, Any]]:
    rules = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_valid() -> None:
    """Prometheus takes every rule."""
    _promtool("check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml")))


@needs_promtool
def test_alerts_fire_for_what_they_are_meant_for() -> None:
    """Each fires on made-up series of its fault, and stays silent on what only looks like it."""
    _promtool("test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml")))


def test_every_alert_has_a_test() -> None:
    """An alert that no test makes fire is a guess."""
    tests = "".join(path.read_text() for path in (PROMETHEUS / "tests").glob("*.yml"))
    fired = set(re.findall(r'labels: .ALERTS\{alertname="(\w+)", alertstate="firing"', tests))
    fired |= set(re.findall(r"- alertname: (\w+)", tests))
    assert fired == _alerts().keys()


def test_every_alert_says_what_to_do() -> None:
    """It says how urgent it is, what happened, and where in the runbook to go on."""
    for name, alert in _alerts().items():
        assert alert["labels"]["severity"] in {"page", "ticket"}, name
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}, name
        assert alert["annotations"]["runbook"] == f"deploy/runbook.md#{name.lower()}"


def test_the_runbook_has_a_paragraph_for_each_alert_and_for_no_other() -> None:
    """Each says its urgency, what it means, where to look, what to do."""
    alerts = _alerts()
    assert list(PARAGRAPHS) == list(alerts)
    for name, paragraph in PARAGRAPHS.items():
        assert paragraph.lower().startswith(f"{alerts[name]['labels']['severity']}. "), name
        assert "**Look**" in paragraph, name
        assert "**Do**" in paragraph, name


def test_every_command_of_the_runbook_exists() -> None:
    """Names, options and their values are those of the command line."""
    commands = COMMAND.findall(re.sub(r"\s+", " ", RUNBOOK))
    assert len(set(commands)) > 10
    for command in commands:
        _check(command)


def _check(command: str) -> None:
    """Resolve a command, down to its options; click raises where there is none."""
    found: Any = typer.main.get_command(cli)
    words = shlex.split(command)[1:]
    while hasattr(found, "commands") and words:  # typer brings a click of its own
        name = words.pop(0)
        assert name in found.commands, f"{command}: no {name}"
        found = found.commands[name]
    found.make_context(command, words, resilient_parsing=False)


@pytest.mark.parametrize("command", ["audiofuse dead lits", "audiofuse dead list --raeson bug"])
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    """The check of the runbook's commands can fail."""
    with pytest.raises(Exception, match=r"no lits|raeson"):
        _check(command)


def test_the_runbook_names_settings_and_reasons_that_exist() -> None:
    """Every AUDIOFUSE_ variable is a setting, every reason one of the closed set."""
    names = set(re.findall(rf"{PREFIX}(\w+)", RUNBOOK))
    assert {name.lower() for name in names} <= Settings.model_fields.keys()
    reasons = re.findall(r"--reason (\w+)", RUNBOOK)
    assert reasons
    assert {Reason(reason) for reason in reasons}


def test_the_links_of_the_runbook_lead_somewhere() -> None:
    """Every file that it names is there."""
    for link in re.findall(r"\]\(([^)#]+)\)", RUNBOOK):
        assert (DEPLOY / link).exists(), link
