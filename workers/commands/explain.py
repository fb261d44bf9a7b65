"""The command that says why something is found or not: ``audiofuse explain --help``."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.options import Json, Prefix, print_json
from audiofuse.workers.commands.terminal.screen import Screen

if TYPE_CHECKING:
    from audiofuse.workers.repair.explain import Audit, Explanation


def explain(
    key: Annotated[str, typer.Argument(help="An object of the bucket.")] = "",
    prefix: Prefix = "",
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Audit the bucket: what became of every sound in it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say why an object is found or not; with --all, count what became of every sound.

    Changes nothing. In an audit the sums agree: what is expected is indexed, outdated, missing or
    rejected for a reason.
    """
    from audiofuse.workers.commands.terminal.display import Bars
    from audiofuse.workers.repair.explain import open_explainer

    if bool(key) == everything:
        raise typer.BadParameter("give a key, or --all")
    if prefix and not everything:
        raise typer.BadParameter("--prefix narrows --all")
    explainer = open_explainer(Settings())
    if key:
        explanation = explainer.explain(key)
        print_json(asdict(explanation)) if as_json else _show(explanation)
        return
    with Bars() as bars:
        audit = explainer.audit(prefix, bars.over)
    print_json(asdict(audit) | {"agrees": audit.agrees}) if as_json else _show_audit(audit)
    if not audit.agrees:
        raise AudiofuseError("the sums do not agree: the bucket changed meanwhile; look again")


def _show(explanation: "Explanation") -> None:
    from audiofuse.workers.commands.terminal.display import facts_table, letters_table, moment

    console, facts = Screen(), dict[str, object]()
    if explanation.object:
        facts["object"] = (
            f"{explanation.object.size} bytes, of {moment(explanation.object.modified_ms / 1000)}"
        )
    if explanation.unreadable:
        facts["object"] = f"cannot be looked at: {explanation.unreadable}"
    if explanation.sidecar:
        changed = moment(explanation.sidecar.modified_ms / 1000)
        facts["sidecar"] = f"{explanation.sidecar.key}, of {changed}"
    for held in explanation.held:
        state = "as the bucket has it" if held.agrees else "another state"
        live = ", live" if held.is_live else ""
        facts[f"in {held.version}{live}"] = f"{state}, since {moment(held.indexed_at / 1000)}"
        if held.moments or held.moments_there:
            others = f"{held.moments_there} are there, not just those that it is to have"
            there = "all there" if held.moments_agree else others
            facts[f"moments in {held.version}"] = f"{held.moments}: {there}"
    if explanation.moments_left:
        facts["moments without a point"] = f"{explanation.moments_left}: they are not shown"
    facts["id"] = explanation.id
    console.print(f"{explanation.key}: {explanation.state}", highlight=False, markup=False)
    console.print(explanation.why, highlight=False, markup=False)
    console.print(facts_table("", facts))
    if explanation.letters:
        console.print(letters_table("rejected", explanation.letters))


def _show_audit(audit: "Audit") -> None:
    from audiofuse.workers.commands.terminal.display import facts_table

    facts: dict[str, object] = {
        "indexed": audit.indexed,
        "outdated": audit.outdated,
        "missing": audit.missing,
        **{f"rejected: {reason}": count for reason, count in audit.rejected.items()},
    }
    if audit.gone_meanwhile:
        facts["rejected, and changed meanwhile"] = audit.gone_meanwhile
    facts["in the bucket"] = audit.expected
    index = {"indexed": audit.indexed, "outdated": audit.outdated, "orphaned": audit.orphaned}
    console = Screen()
    console.print(facts_table("sounds in the bucket", facts))
    console.print(facts_table(f"points of {audit.version}", {**index, "in all": audit.points}))
