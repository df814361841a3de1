"""Latency over channels as a page of its own: measured rows as points, the model as a line, its band around it."""

from html import escape
from pathlib import Path
from textwrap import wrap

import plotly.graph_objects as go

from autocomp.hardware.channel_sweep import Curve
from autocomp.hardware.profile import HardwareProfile
from autocomp.report.axes import FAINT, FONT, GRID, INK

_BAND, _LINE, _POINT = "rgba(33, 145, 140, 0.18)", "#21918c", "#440154"


def write_plot(profile: HardwareProfile, curve: Curve, path: Path) -> None:
    """Write the page; it opens offline. OSError where the file cannot be written."""
    path.write_text(plot(profile, curve).to_html(include_plotlyjs=True, config={"displaylogo": False}), "utf-8")


def plot(profile: HardwareProfile, curve: Curve) -> go.Figure:
    """Traces: the band, the model, the measured rows, and the channels that lie outside what the table covers."""
    estimate, channels = curve.estimate, list(curve.channels)
    figure = go.Figure()
    figure.add_scatter(
        x=channels + channels[::-1],
        y=estimate.high_us.tolist() + estimate.low_us.tolist()[::-1],
        name="90 % band",
        fill="toself",
        fillcolor=_BAND,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=channels,
        y=estimate.us.tolist(),
        name="model",
        mode="lines",
        line={"color": _LINE, "width": 2},
        customdata=list(zip(estimate.low_us.tolist(), estimate.high_us.tolist(), strict=True)),
        hovertemplate="%{x} channels: %{y:.3~g} µs [%{customdata[0]:.3~g}–%{customdata[1]:.3~g}]<extra></extra>",
    )
    rows = curve.measured
    figure.add_scatter(
        x=list(rows),
        y=[row.latency_us for row in rows.values()],
        error_y={
            "array": [row.spread_us or 0.0 for row in rows.values()], "color": FAINT, "thickness": 1.2, "width": 3,
        },
        name="rows of the table",
        mode="markers",
        marker={"color": _POINT, "size": 8},
        hovertemplate="%{x} channels: %{y:.3~g} µs in the table<extra></extra>",
    )  # fmt: skip
    beyond = [index for index, far in enumerate(estimate.extrapolated.tolist()) if far]
    figure.add_scatter(
        x=[channels[index] for index in beyond],
        y=estimate.us[beyond].tolist(),
        name="beyond the table",
        mode="markers",
        hoverinfo="skip",
        marker={"color": FAINT, "size": 4},
    )
    which = {"in": "input channels", "out": "output channels", "both": "channels"}[curve.sweep.axis]
    title = f"<b>{escape(str(curve.sweep))}</b> on {escape(profile.title)}"
    provenance = "<br>".join(escape(line) for line in wrap(f"Latency: {profile.provenance_note}", 140))
    figure.update_layout(
        template=None,
        title={"text": title, "x": 0.02, "font": {"size": 18}},
        height=560,
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        hovermode="closest",
        margin={"l": 72, "r": 24, "t": 84, "b": 120},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
    )
    figure.update_xaxes(
        title={"text": which, "standoff": 8}, rangemode="tozero", gridcolor=GRID, linecolor=FAINT, zeroline=False
    )
    figure.update_yaxes(title="latency, µs", rangemode="tozero", gridcolor=GRID, linecolor=FAINT, zeroline=False)
    figure.add_annotation(
        text=provenance, x=0, y=0, xref="paper", yref="paper", xanchor="left", yanchor="top", yshift=-64, align="left",
        showarrow=False, font={"size": 12},
    )  # fmt: skip
    return figure
