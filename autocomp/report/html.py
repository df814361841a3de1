"""report.html: one file that opens offline and loads nothing. The charts are Plotly's, the page is page.html.jinja.

Names and reasons come from files and from other people's code. They reach the page through Jinja's escaping, or as
JSON that the script sets as text; a content policy in the page forbids any load from elsewhere.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autocomp import __version__
from autocomp.budget import Budget
from autocomp.outcome import Status
from autocomp.report import figures
from autocomp.report.axes import COLOURS, FAINT, FONT, GRID, INK, CostAxis, accuracy_range, label, ticks
from autocomp.report.explain import decisions, known_layers, most_useful, summary
from autocomp.report.figures import provenances
from autocomp.rundir import REPORT, Measured, OnDevice, RunData, read_run

#: How many trials without a file the page lists one by one.
MOST_REASONS = 200


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory and return its path. Raises UserError where the run is unreadable."""
    path = run / REPORT
    partial = path.with_name(f".{REPORT}.partial")
    partial.write_text(render(read_run(run)), encoding="utf-8")
    partial.replace(path)  # whoever has the page open never sees half of it
    return path


def render(run: RunData) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        percent=figures.percent, points=figures.points, size=figures.size, ms=figures.milliseconds,
        times=figures.times, duration=figures.duration, significant=figures.significant,
    )  # fmt: skip
    # The folder is on disk for a wheel and for a checkout; resources keep it so for a zip.
    own = files("autocomp.report")
    first = most_useful(run)
    template = environment.from_string(own.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    settings = run.settings
    return template.render(
        run=run,
        settings=settings,
        metric=figures.metric_of(settings),
        facts=_facts(settings),
        axes=CostAxis.of_run(run),
        rows=[
            (measured, _difference(measured, run.float_reference), run.smaller(measured))
            for measured in [*run.references.values(), *run.front]
        ],
        first=first,
        smallest=min(run.front, key=lambda point: point.stored_bytes, default=None),
        fastest=min(run.front, key=lambda point: point.latency_ms or 0.0, default=None),
        without_file=[e for e in run.entries if e.outcome.status in (Status.INFEASIBLE, Status.FAILED)],
        most_reasons=MOST_REASONS,
        below=_below(run),
        left_alone=settings.get("left_alone") or [],
        removed=_removed(settings.get("removed_choices") or []),
        provenances=provenances(run),
        compared_with=figures.compared_with(run),
        failed_references=figures.failed_references(run),
        versions=settings.get("versions") or {},
        command_run=_command_path(run.path),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        style=Markup(own.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(own.joinpath("page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        data=_embed(_page_data(run, first)),
    )


def _embed(document: Any) -> Markup:
    """JSON that may stand inside a script element: "</script>" and "<!--" cannot occur in it."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _facts(settings: Any) -> list[tuple[str, str]]:
    """What was asked for, as label and value; a setting that was not given is left out."""
    labels = ("task", "network", "hw", "budget", "controller", "space", "seed", "trials", "minutes", "workers")
    shown = {"hw": "device"}
    facts = [(shown.get(key, key), _as_text(settings.get(key))) for key in labels]
    if settings.get("devices"):  # each has a budget of its own
        own = [(f"budget on {name}", _as_text(device["budget"])) for name, device in settings["devices"].items()]
        facts = [fact for known in facts for fact in (own if known[0] == "budget" else [known])]
    if settings.get("seconds"):
        facts.append(("took", figures.duration(float(settings["seconds"]))))
    if settings.get("started_at"):
        facts.append(("started", str(settings["started_at"])))
    return [(name, value) for name, value in facts if value]


def _as_text(value: Any) -> str:
    """A setting as a person writes it. A budget is a mapping in run.yaml."""
    if isinstance(value, dict):
        if "size_bytes" in value or "latency_ms" in value:
            bounds = {bound.name for bound in fields(Budget)}
            return str(Budget(**{name: bound for name, bound in value.items() if name in bounds}))
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "" if value is None else str(value)


def _difference(measured: Measured, reference: Measured | None) -> float | None:
    """Of test accuracy; None for what cannot be compared."""
    if reference is None or measured is reference or None in (measured.test_accuracy, reference.test_accuracy):
        return None
    return (measured.test_accuracy or 0.0) - (reference.test_accuracy or 0.0)


def _removed(choices: Sequence[Any]) -> list[tuple[str, int, str]]:
    """(reason, how many choices, an example): the same reason holds for many layers."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for choice in choices:
        if isinstance(choice, dict):
            what, reason = str(choice.get("choice") or choice.get("name") or ""), str(choice.get("reason", ""))
        elif isinstance(choice, list | tuple) and len(choice) == 2:
            what, reason = str(choice[0]), str(choice[1])
        else:
            what, reason = str(choice), ""
        reasons[reason] += 1
        examples.setdefault(reason, what)
    return [(reason, count, examples[reason]) for reason, count in reasons.most_common()]


def _command_path(path: Path) -> str:
    """The run as one would type it: relative to here where it lies below, quoted where a shell needs it."""
    import shlex

    resolved = path.resolve()
    here = Path.cwd()
    return shlex.quote(str(resolved.relative_to(here) if resolved.is_relative_to(here) else resolved))


def _page_data(run: RunData, first: Measured | None) -> dict[str, Any]:
    """What the script needs: two figures, and per point its figures and its layers."""
    layers = known_layers(run)
    points = {}
    for point in run.front:
        policy = run.policies.get(point.name)
        difference, smaller = _difference(point, run.float_reference), run.smaller(point)
        points[point.name] = {
            "file": point.file,
            "summary": "" if policy is None else ", ".join(summary(policy, layers)),
            "figures": [
                [f"validation, {figures.metric_of(run.settings)}", figures.percent(point.accuracy)],
                [f"test, {figures.metric_of(run.settings)}", figures.percent(point.test_accuracy)],
                ["against float, test", f"{figures.points(difference)} points"],
                [
                    "bytes" if point.compiled_bytes is None else "bytes, compiled",
                    f"{point.stored_bytes:,} ({figures.times(smaller)} smaller)",
                ],
                *([] if point.compiled_bytes is None else [["bytes of the .tflite", f"{point.size_bytes:,}"]]),
                *map(list, _latencies(point, run)),
                *([["left to the CPU", point.cpu_operators]] if point.cpu_operators else []),
            ],
            "layers": None
            if policy is None
            else [
                [
                    d.name,
                    d.op,
                    d.decided.weight_bits,
                    d.decided.clusters,
                    d.decided.activation,
                    d.decided.sparsity,
                    d.decided.pattern,
                    d.kept,
                    d.channels,
                ]
                for d in decisions(policy, layers)
            ],
        }
    drawn = [_figure(run, axis) for axis in CostAxis.of_run(run)] if run.front else []
    return {
        "figures": [json.loads(figure.to_json()) for figure in drawn],
        "points": points,
        "first": None if first is None else first.name,
    }


def _latencies(point: Measured, run: RunData) -> list[tuple[str, str]]:
    """Label and text of a point's latency and its band, on each device."""
    found = []
    for name in run.devices or ("",):
        text = f"{figures.milliseconds(point.latency_on(name))} ({figures.times(run.faster(point, name))} faster)"
        found += [(f"latency on {name}" if name else "latency", text)]
        found += [("latency band", _band(point.devices[name] if name else point))]
    return found


def _band(latency: Measured | OnDevice) -> str:
    low, high = figures.significant(latency.latency_low_ms), figures.milliseconds(latency.latency_high_ms)
    return f"{low}–{high}"


def _figure(run: RunData, axis: CostAxis) -> go.Figure:
    """Accuracy over one cost, coloured by the other. Traces: trials, front, references, and the point picked."""
    other = axis.other
    layers = known_layers(run)
    trials = [
        (cost, entry.outcome.accuracy or 0)
        for entry in run.entries
        if entry.outcome.status is Status.COMPLETE and (cost := axis.of_trial(entry)) is not None
    ]
    shown = [*run.front, *run.references.values()]
    figure = go.Figure()
    figure.add_scatter(
        x=[cost for cost, _ in trials],
        y=[100 * accuracy for _, accuracy in trials],
        name="other trials",
        mode="markers",
        marker={"size": 5, "color": FAINT, "opacity": 0.35},
        hoverinfo="skip",
    )
    costs = [cost for _, cost in other.drawn(run.front)]
    marks = ticks(min(costs, default=1), max(costs, default=1))
    figure.add_scatter(
        x=[cost for _, cost in axis.drawn(run.front)],
        y=[100 * point.accuracy for point in run.front],
        name="front",
        mode="markers",
        customdata=[point.name for point in run.front],
        text=[_hover(point, run, layers) for point in run.front],
        hovertemplate="%{text}<extra></extra>",
        marker={
            "size": 12,
            "color": [math.log10(cost) for cost in costs],
            "colorscale": COLOURS,
            "line": {"color": INK, "width": 1},
            "colorbar": {
                "title": {"text": "latency" if other.latency else "bytes", "side": "top", "font": {"size": 13}},
                "tickvals": [math.log10(tick) for tick in marks],
                "ticktext": [label(tick, other) for tick in marks],
                "thickness": 12,
                "outlinewidth": 0,
                "len": 0.9,
            },
        },
    )
    if axis.latency:
        figure.data[1].error_x = {
            "type": "data",
            "symmetric": False,
            "array": [axis.band(point)[1] - cost for point, cost in axis.drawn(run.front)],
            "arrayminus": [cost - axis.band(point)[0] for point, cost in axis.drawn(run.front)],
            "color": FAINT,
            "thickness": 1.2,
            "width": 3,
        }
    references = axis.drawn(run.references.values())
    figure.add_scatter(
        x=[cost for _, cost in references],
        y=[100 * reference.accuracy for reference, _ in references],
        name="references",
        mode="markers+text",
        cliponaxis=False,
        text=[escape(reference.name) for reference, _ in references],
        textposition="bottom center",
        hovertext=[_hover(reference, run, ()) for reference, _ in references],
        hovertemplate="%{hovertext}<extra></extra>",
        marker={"size": 12, "symbol": "diamond", "color": "#ffffff", "line": {"color": INK, "width": 2}},
    )
    figure.add_scatter(
        x=[], y=[], mode="markers", hoverinfo="skip", showlegend=False,
        marker={"size": 22, "symbol": "circle-open", "color": "#b3261e", "line": {"width": 2.5}},
    )  # fmt: skip
    _frame(figure, run, axis, shown)
    return figure


def _below(run: RunData) -> int:
    """How many complete trials score too low for the charts' first view."""
    lowest = accuracy_range([*run.front, *run.references.values()])[0]
    scored = [entry.outcome.accuracy for entry in run.entries if entry.outcome.status is Status.COMPLETE]
    return sum(accuracy is not None and 100 * accuracy < lowest for accuracy in scored)


def _frame(figure: go.Figure, run: RunData, axis: CostAxis, shown: Sequence[Measured]) -> None:
    bound = axis.bound(run)
    values = [cost for _, cost in axis.drawn(shown)]
    if axis.latency:
        values += [v for point in run.front for v in axis.band(point) if v > 0]
    if bound:
        values.append(bound)
    low, high = min(values, default=1), max(values, default=1)
    marks = ticks(low, high)
    # In powers of ten: 5 % of the span on each side, and never a span of zero.
    pad = max(0.03, 0.06 * (math.log10(high) - math.log10(low)))
    figure.update_layout(
        template=None,
        font={"family": FONT, "size": 13, "color": INK},
        margin={"l": 56, "r": 8, "t": 34, "b": 48},
        height=400,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        hovermode="closest",
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": INK, "align": "left", "font": {"color": INK, "family": FONT}},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
    )
    figure.update_xaxes(
        type="log",
        range=[math.log10(low) - pad, math.log10(high) + pad],
        tickvals=marks,
        ticktext=[label(tick, axis) for tick in marks],
        title={"text": escape(axis.title), "font": {"size": 13}},
        tickangle=0,
        gridcolor=GRID,
        zeroline=False,
        linecolor=FAINT,
        ticks="outside",
    )
    figure.update_yaxes(
        range=list(accuracy_range(shown)),
        title={"text": escape(f"{figures.metric_of(run.settings)} on validation, %"), "font": {"size": 13}},
        gridcolor=GRID,
        zeroline=False,
        linecolor=FAINT,
        automargin=True,
    )
    if bound:
        figure.add_vline(x=bound, line={"color": INK, "width": 1, "dash": "dash"})
        figure.add_annotation(
            x=math.log10(bound), y=1, yref="paper", text="budget ", showarrow=False, xanchor="right", yanchor="top"
        )


def _hover(measured: Measured, run: RunData, layers: Sequence[Any]) -> str:
    """Plotly reads a little HTML in hover texts, so names are escaped here too."""
    difference, smaller = _difference(measured, run.float_reference), run.smaller(measured)
    lines = [
        f"<b>{escape(measured.name)}</b>",
        f"{figures.percent(measured.accuracy)} validation",
        f"{figures.percent(measured.test_accuracy)} test"
        + ("" if difference is None else f" ({figures.points(difference)} points)"),
        figures.size(measured.stored_bytes) + ("" if smaller is None else f" ({figures.times(smaller)} smaller)"),
        f"{figures.milliseconds(measured.latency_ms)} [{_band(measured)}]",
    ]
    policy = run.policies.get(measured.name)
    if policy is not None and layers:
        lines += summary(policy, layers)
    return "<br>".join(lines)
