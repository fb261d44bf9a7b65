"""What dashboards have in common, and panels of one kind, and queries that recur."""

from collections.abc import Mapping
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")  # provisioning/datasources
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"
TAG = "audiofuse"
SECONDS, SHARE, BYTES, NUMBER, RATE = "s", "percentunit", "bytes", "short", "suffix:/s"
TALL = 7  # with these heights the overview fills one screen

Query = tuple[str, str]  # PromQL, legend
Steps = Mapping[float | None, str]  # from which value on a value has which colour
Texts = Mapping[str, tuple[str, str]]  # which text and colour stand for a value
Panel = TypeVar("Panel", stat.Panel, timeseries.Panel, statetimeline.Panel)


def empty_board(name: str, title: str, tells: str) -> dashboard.Dashboard:
    """Return an empty dashboard; where a rollout took a step all graphs have a mark."""
    link = dashboard.DashboardLink(TAG).type(DashboardLinkType.DASHBOARDS).tags([TAG])
    steps = (
        dashboard.AnnotationQuery()
        .name("steps of a rollout")
        .datasource(SOURCE)
        .enable(enable=True)
        .icon_color(BLUE)
        .expr("changes(audiofuse_rollout_step_timestamp_seconds[1m]) > 0")
    )
    return (
        dashboard.Dashboard(title)
        .uid(f"{TAG}-{name}")
        .description(tells)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(link.as_dropdown(as_dropdown=False).keep_time(keep_time=True))
        .annotation(steps)
    )


def _query(expr: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend or "__auto").datasource(SOURCE)


def _furnished(
    panel: Panel, title: str, tells: str, queries: tuple[Query, ...], unit: str
) -> Panel:
    """Give a panel what every kind of panel has."""
    panel = panel.title(title).description(tells).datasource(SOURCE).unit(unit)
    for number, (expr, legend) in enumerate(queries):
        panel = panel.with_target(_query(expr, legend).ref_id(chr(ord("A") + number)))
    return panel


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    found = [Threshold(value=value, color=color) for value, color in steps.items()]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def _mapping(texts: Texts) -> ValueMap:
    return ValueMap(
        options={
            value: ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(texts.items())
        }
    )


def figure(  # noqa: PLR0913 - what a figure consists of
    title: str,
    tells: str,
    expr: str,
    unit: str,
    steps: Steps | None = None,
    *,
    texts: Texts | None = None,
    none: str = "none",
    legend: str = "",
) -> stat.Panel:
    """Return one big number as it is now: of what is away it shows ``none``, not the last value."""
    panel = _furnished(stat.Panel(), title, tells, (), unit)
    panel = panel.with_target(_query(expr, legend).instant())
    return (
        panel.height(4)
        .span(4)
        .thresholds(_thresholds(steps or {None: BLUE}))
        .mappings([_mapping(texts)] if texts else [])
        .no_value(none)
        .decimals(1 if unit in {SECONDS, SHARE, RATE} else 0)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(BigValueColorMode.VALUE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME if legend else BigValueTextMode.AUTO)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def lines(  # noqa: PLR0913 - what a graph consists of
    title: str,
    tells: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    limit: float | None = None,
    log: bool = False,
    share: bool = False,
) -> timeseries.Panel:
    """Return a graph: ``stacked`` areas or lines; a dashed line where there is a ``limit``."""
    panel = _furnished(timeseries.Panel(), title, tells, queries, unit).height(TALL).span(8)
    panel = (
        panel.line_width(1)
        .fill_opacity(30 if stacked else 0)
        .no_value("none")
        .show_points(VisibilityMode.NEVER)
        .min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if log:
        scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds({None: "transparent", limit: RED}))
        panel = panel.thresholds_style(style).axis_soft_max(2 * limit)
    return panel.max(1) if share else panel


def states(title: str, tells: str, texts: Texts, *queries: Query) -> statetimeline.Panel:
    """Return a band for each series that shows which state it was in."""
    panel = _furnished(statetimeline.Panel(), title, tells, queries, NUMBER).height(TALL).span(8)
    return (
        panel.mappings([_mapping(texts)])
        .thresholds(_thresholds({None: BLUE}))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .no_value("none")
        .row_height(0.8)
        .merge_values(merge_values=True)
        .legend(
            common.VizLegendOptions()
            .show_legend(show_legend=False)
            .display_mode(LegendDisplayMode.HIDDEN)
        )
    )


def rate(metric: str, by: str, labels: str = "") -> str:
    """Return how fast a counter grows, summed."""
    selector = f"{metric}{{{labels}}}" if labels else metric
    return f"sum by ({by}) (rate({selector}[$__rate_interval]))"


def quantiles(metric: str, labels: str = "") -> tuple[Query, ...]:
    """Return the median, p95 and p99 of a histogram."""
    buckets = rate(f"{metric}_bucket", "le", labels)
    return tuple(
        (f"histogram_quantile({quantile}, {buckets})", name)
        for quantile, name in ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
    )


def average(metric: str, labels: str) -> str:
    """Return the mean of a histogram's observations."""
    return f"{rate(f'{metric}_sum', '', labels)} / {rate(f'{metric}_count', '', labels)}"
