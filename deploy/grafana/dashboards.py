"""Grafana's dashboards: ``make dashboards`` writes them to dashboards/*.json.

The files are committed, because Grafana reads them; a test holds that they are what this makes.
A panel's title is a question or a name of the domain, its description says what to make of it.
"""

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    VariableOption,
    VariableRefresh,
)
from panels import (
    BLUE,
    BYTES,
    GREEN,
    GREY,
    NUMBER,
    RATE,
    RED,
    SECONDS,
    SHARE,
    SOURCE,
    YELLOW,
    average,
    empty_board,
    figure,
    lines,
    quantiles,
    rate,
    states,
)

FOLDER = Path(__file__).parent / "dashboards"
FIRING = 'ALERTS{alertname=~"Audiofuse.*", alertstate="firing"}'
TOLD_BY = ("alertname", "part", "process", "lane", "reason", "outcome", "source")
CHOSEN = 'instance=~"$instance"'  # the workers that are chosen at the top
ASKED = 'route=~"/v1/(search|similar|items|embed).*"'  # neither sounds that are played, nor probes
KIND = "* on (job, instance) group_left (process) audiofuse_build_info"


def overview() -> dashboard.Dashboard:
    """Tell whether it is healthy, how far behind, what is failing, how fast, how much longer."""
    panels = (
        figure(
            "Is it healthy?", "Alerts that fire; below is which.",
            f"count({FIRING}) or vector(0)",
            "suffix: alerts", {None: GREEN, 1: RED}, texts={"0": ("healthy", GREEN)},
        ),
        figure(
            "Found within 30 s", "Uploads of the last hour; the objective is 99 %.",
            "1 - audiofuse:freshness_late:ratio_rate1h",
            SHARE, {None: RED, 0.94: YELLOW, 0.99: GREEN}, none="no uploads",
        ),
        figure(
            "How far behind?", "Age of the oldest live message that is not finished.",
            'max(audiofuse_backlog_oldest_seconds{lane="live"})',
            SECONDS, {None: GREEN, 30: YELLOW, 120: RED}, none="unknown",
        ),
        figure(
            "How fast?", "Messages of both lanes that are finished, in a second.",
            "sum(audiofuse:syncs_finished:rate5m)", RATE, none="no worker",
        ),
        figure(
            "How much longer?", "What waits, over how fast it goes. A backfill or a reconcile puts "
            'at most 5,000 messages into the queue: what is behind them is in "Last comparison".',
            "sum(audiofuse:backlog_messages:sum) / (sum(audiofuse:syncs_finished:rate5m) > 0)"
            " or (sum(audiofuse:backlog_messages:sum) == 0)",
            SECONDS, {None: GREEN, 300: YELLOW, 3600: BLUE}, none="stands still",
        ),
        figure(
            "Rejected in the last hour", "Bad input; `audiofuse dead list` tells which.",
            "sum(increase(audiofuse_rejections_total[1h]))",
            NUMBER, {None: GREEN, 1: YELLOW}, none="no worker",
        ),
        lines(
            "Freshness", "From upload to when it is found. The dashed line is the objective.",
            SECONDS, *quantiles("audiofuse_freshness_seconds", 'lane="live"'), limit=30, log=True,
        ),
        lines(
            "Waiting", "Messages in the queue, and with a worker (its hand, or in work).", NUMBER,
            ("sum by (lane, state) (audiofuse_backlog_messages)", "{{lane}}, {{state}}"),
            stacked=True,
        ),
        lines(
            "Outcomes", "What came of messages. `unavailable` is tried again, `later` is left to "
            "another message.", RATE,
            (f"{rate('audiofuse_syncs_total', 'outcome')} > 0", "{{outcome}}"),
            stacked=True,
        ),
        states(
            "What is failing?", "Alerts that fire: deploy/runbook.md tells what to do.",
            {"1": ("firing", RED)},
            (
                f"max by ({', '.join(TOLD_BY)}) ({FIRING})",
                " ".join(f"{{{{{label}}}}}" for label in TOLD_BY),
            ),
        ),
        states(
            "Parts", "What the exporter gets an answer from.",
            {"1": ("answers", GREEN), "0": ("away", RED)},
            ("max by (part) (audiofuse_up)", "{{part}}"),
        ),
        lines(
            "Dead letters", "Rejected objects that stand, until they are replaced or deleted.",
            NUMBER, ("sum by (reason) (audiofuse_dead_letters) > 0", "{{reason}}"), stacked=True,
        ),
        lines(
            "Items", "What can be found, and which part of it no words describe.", NUMBER,
            ('sum(audiofuse_items{role="live"})', "items"),
            ('sum(audiofuse_items_without_text{role="live"})', "without text"),
        ).span(6),
        lines(
            "Answers", "How long a query takes.", SECONDS,
            *quantiles("audiofuse_query_duration_seconds", ASKED), log=True,
        ).span(6),
        lines(
            "Events", "What the bucket told the intake; all but two outcomes were dropped.",
            RATE,
            (f"{rate('audiofuse_events_total', 'outcome')} > 0", "{{outcome}}"),
            stacked=True,
        ).span(6),
        lines(
            "Last comparison", "What `reconcile` or `backfill` found to be missing, outdated or "
            "orphaned when it began: how much there was to do.", NUMBER,
            (
                'sum by (finding) (audiofuse_reconcile_items{finding!="agreed"})',
                "{{finding}}",
            ),
        ).span(6),
    )  # fmt: skip
    board = empty_board(
        "overview", "audiofuse: overview", "Is it healthy, and how far behind is it?"
    )
    for panel in panels:
        board = board.with_panel(panel)
    return board


def worker() -> dashboard.Dashboard:
    """Tell where a worker's time goes, what limits it, and what it runs on."""
    stages = rate("audiofuse_stage_duration_seconds_bucket", "le, stage", CHOSEN)
    panels = (
        figure(
            "Workers", "Workers that answer.", f'count(audiofuse_build_info{{process="worker", '
            f"{CHOSEN}}})", NUMBER, {None: GREEN},
        ),
        figure(
            "Device", "Where the encoders run, and what was asked for.",
            f"count by (device, asked) (audiofuse_device_info{{{CHOSEN}}})",
            NUMBER, legend="{{device}}, asked {{asked}}",
        ),
        figure(
            "In hand", "Messages that the workers have taken and not finished.",
            f"sum(audiofuse_in_hand_messages{{{CHOSEN}}})", NUMBER,
        ),
        figure(
            "Silent for", "Since the thread that takes messages last went round, of the slowest.",
            f"max(time() - audiofuse_heartbeat_timestamp_seconds{{{CHOSEN}}})",
            SECONDS, {None: GREEN, 30: YELLOW, 60: RED},
        ),
        figure(
            "Came again in the last hour", "Messages that a worker lost, or was slow with.",
            f"sum(increase(audiofuse_redeliveries_total{{{CHOSEN}}}[1h]))",
            NUMBER, {None: GREEN, 1: YELLOW},
        ),
        figure(
            "Halved in the last hour", "Batches that failed, most often for want of memory.",
            f"sum(increase(audiofuse_batch_splits_total{{{CHOSEN}}}[1h]))",
            NUMBER, {None: GREEN, 1: YELLOW},
        ),
        lines(
            "Where the time goes", "How many threads are in a stage, on average.", NUMBER,
            (rate("audiofuse_stage_duration_seconds_sum", "stage", CHOSEN), "{{stage}}"),
            stacked=True,
        ),
        lines(
            "How long a stage takes", "19 of 20 take less.", SECONDS,
            (f"histogram_quantile(0.95, {stages})", "{{stage}}"), log=True,
        ),
        lines(
            "Failures", "By stage and whose fault: the file's (rejected), a part's (unavailable), "
            "the uploader's (changed), ours (bug).", RATE,
            (
                f"{rate('audiofuse_stage_errors_total', 'stage, error', CHOSEN)} > 0",
                "{{stage}}: {{error}}",
            ),
            stacked=True,
        ),
        lines(
            "Device busy", "Near 100 % the device is the limit; far below, what feeds it.", SHARE,
            (rate("audiofuse_device_busy_seconds_total", "instance", CHOSEN), "{{instance}}"),
            share=True,
        ),
        lines(
            "Sound heard", "Hours of sound an hour.", "suffix:x",
            (rate("audiofuse_audio_seconds_total", "instance", CHOSEN), "{{instance}}"),
            stacked=True,
        ),
        lines(
            "Batches", "How full they are, and which part of them is padding, on average.", SHARE,
            (average("audiofuse_batch_fill_ratio", CHOSEN), "fill"),
            (average("audiofuse_batch_padding_ratio", CHOSEN), "padding"), share=True,
        ),
        lines(
            "Batch capacity", "Seconds of sound in a batch; it falls when memory does not suffice.",
            SECONDS, (f"audiofuse_batch_capacity_seconds{{{CHOSEN}}}", "{{instance}}"),
        ),
        lines(
            "GPU memory", "What PyTorch uses, holds, and what there is. Empty on a CPU.", BYTES,
            (
                f"sum by (memory) (audiofuse_device_memory_bytes{{{CHOSEN}}})", "{{memory}}",
            ),
        ),
        lines(
            "In hand, by lane", "Messages that each worker has taken and not finished.", NUMBER,
            (
                f"sum by (instance, lane) (audiofuse_in_hand_messages{{{CHOSEN}}})",
                "{{instance}} {{lane}}",
            ),
            stacked=True,
        ),
        lines(
            "CPU of all processes", "Cores that each kind of process takes, its decoders aside.",
            NUMBER,
            (
                f"sum by (process) (rate(process_cpu_seconds_total[$__rate_interval]) {KIND})",
                "{{process}}",
            ),
            stacked=True,
        ),
        lines(
            "Memory of all processes", "Resident; decoders aside.", BYTES,
            (f"sum by (process) (process_resident_memory_bytes {KIND})", "{{process}}"),
            stacked=True,
        ),
        lines(
            "Processes", "How many of each kind answer.", NUMBER,
            ("count by (process) (audiofuse_build_info)", "{{process}}"),
        ),
    )  # fmt: skip
    instances = (
        dashboard.QueryVariable("instance")
        .label("worker")
        .datasource(SOURCE)
        .query('label_values(audiofuse_build_info{process="worker"}, instance)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )
    board = empty_board("worker", "audiofuse: workers", "Where the time goes, and what limits it.")
    board = board.with_variable(instances)
    for panel in panels:
        board = board.with_panel(panel)
    return board


def rollout() -> dashboard.Dashboard:
    """Tell how far the next encoder is, and whether it can go live."""
    phases = {
        "building": BLUE, "paused": YELLOW, "promoted": GREEN, "rolled_back": RED, "none": GREY,
    }  # fmt: skip
    shown = {str(number): (name, phases[name]) for number, name in enumerate(phases)}
    phase = " or ".join(
        f'(max(audiofuse_rollout_phase{{phase="{name}"}}) == 1) * {number}'
        for number, name in enumerate(phases)
    )
    candidate = 'sum(audiofuse_items{role="candidate"})'
    roles = " or ".join(
        f'audiofuse_items{{role="{role}"}} * 0 + {number}'
        for number, role in enumerate(("live", "candidate", "previous"), 1)
    )
    panels = (
        figure(
            "Phase", "`audiofuse rollout status` tells more.", phase, NUMBER, texts=shown,
        ),
        figure(
            "Coverage of the live version", "Less than 100 % after a switch: some are not found.",
            'min(audiofuse_coverage_ratio{role="live"})', SHARE, {None: RED, 1: GREEN},
        ),
        figure(
            "Coverage of the candidate", "It must be 100 % before it can go live.",
            'min(audiofuse_coverage_ratio{role="candidate"})', SHARE, {None: BLUE, 1: GREEN},
        ),
        figure(
            "How much longer?", "What the candidate lacks, over how fast it grows.",
            f'clamp_min(sum(audiofuse_items{{role="live"}}) - {candidate}, 0) '
            '/ (sum(deriv(audiofuse_items{role="candidate"}[10m])) > 0)',
            SECONDS,
        ),
        figure(
            "Last step", "How long ago.",
            "time() - max(audiofuse_rollout_step_timestamp_seconds)", SECONDS,
        ),
        figure(
            "Optimised", "Whether Qdrant has nothing left to do for any version.",
            "min(audiofuse_index_optimised)", NUMBER,
            texts={"1": ("yes", GREEN), "0": ("not yet", YELLOW)},
        ),
        states(
            "Phases", "How the rollout went.", shown, (phase, "phase"),
        ),
        lines(
            "Coverage", "Points over those of the version that has most.", SHARE,
            ("min by (version) (audiofuse_coverage_ratio)", "{{version}}"), share=True,
        ),
        lines(
            "Points", "Of each version.", NUMBER,
            ("max by (version) (audiofuse_items)", "{{version}}"),
        ),
        states(
            "Versions", "Which versions every item is written to, and as what.",
            {"1": ("live", GREEN), "2": ("candidate", BLUE), "3": ("previous", GREY)},
            (
                f"max by (version) ({roles})", "{{version}}",
            ),
        ),
        lines(
            "Encoders loaded", "How many processes have loaded a version.", NUMBER,
            (
                f"count by (version, process) (audiofuse_encoder_loaded {KIND})",
                "{{version}}, {{process}}",
            ),
        ),
        lines(
            "Indexed vectors", "Under some thousands Qdrant searches all there are, and makes no "
            "index.", NUMBER,
            ("max by (version) (audiofuse_index_indexed_vectors)", "{{version}}"),
        ),
        lines(
            "Quality", "mAP@10 by the newest questions that both versions were asked "
            "(`audiofuse evaluate --version`, `audiofuse-train improve`); without metadata it is "
            "`audio only`. `audiofuse rollout status` has the intervals.", SHARE,
            (
                'max by (version, system) (audiofuse_quality_ratio{bound="value"})',
                "{{version}}, {{system}}",
            ),
            share=True,
        ),
        lines(
            "Filled in", "The backfill lane, which fills the candidate.", RATE,
            (
                f"""{rate('audiofuse_syncs_total', 'outcome', 'lane="backfill"')} > 0""",
                "{{outcome}}",
            ),
            stacked=True,
        ),
        lines(
            "Freshness meanwhile", "The live lane; the dashed line is the objective.", SECONDS,
            *quantiles("audiofuse_freshness_seconds", 'lane="live"'), limit=30, log=True,
        ),
        lines(
            "Answers meanwhile", "By HTTP status.", RATE,
            (rate("audiofuse_query_duration_seconds_count", "status", ASKED), "{{status}}"),
            stacked=True,
        ),
    )  # fmt: skip
    board = empty_board("rollout", "audiofuse: rollout", "How far is the next encoder?")
    for panel in panels:
        board = board.with_panel(panel)
    return board


BOARDS = {"overview": overview, "worker": worker, "rollout": rollout}


def main() -> None:
    """Write all dashboards, into the folder that is given or where Grafana finds them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(exist_ok=True)
    for name, board in BOARDS.items():
        text = JSONEncoder(sort_keys=True, indent=2).encode(board().build())
        (folder / f"{name}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
