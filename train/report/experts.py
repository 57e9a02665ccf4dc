"""Heat maps of the experts, and the data of these heat maps."""

import re
from typing import Any

import numpy as np

from train.report.charts import X
from train.report.reading.run import Run
from train.report.reading.thinning import chosen, rounded

_LOAD = re.compile(r"experts/layer_(\d+)/load/expert_(\d+)")
_OF_LAYER = re.compile(r"experts/layer_(\d+)/(\w+)")
LAYER_METRICS = {
    "load_imbalance": "load imbalance (maximum / mean)",
    "effective_experts": "effective experts (of 1)",
    "dead": "dead experts",
    "router_logit_rms": "router logits (RMS)",
    "router_z": "z of the router",
    "unchanged_choices": "unchanged choices (of 1)",
    "router_grad_norm": "gradient norm, router",
    "experts_grad_norm": "gradient norm, experts",
}
"""Metrics logged for each layer, and their names in tables."""


def expert_data(run: Run) -> dict[str, Any] | None:
    """Return the data of the heat maps, or None if the run has not measured expert loads.

    `steps`: the steps of the measurements that are shown. `loads` [T][L][E] (step, layer, expert): loads in percent of
    a balanced load, null if unknown. `metrics`: values [T][L] of each metric by name."""
    found = {_numbers(match): name for name in run.metrics.series if (match := _LOAD.fullmatch(name))}
    if not found:
        return None
    layers, experts = sorted({layer for layer, _ in found}), 1 + max(expert for _, expert in found)
    steps = np.unique(np.concatenate([run.metrics.series[name].steps for name in found.values()]))
    steps = steps[chosen(steps.tolist())]
    loads_TLE = np.full((len(steps), len(layers), experts), np.nan)
    for (layer, expert), name in found.items():
        loads_TLE[:, layers.index(layer), expert] = _at(run, name, steps)
    percent = np.round(loads_TLE * experts * 100)
    return {
        "steps": steps.tolist(),
        "layers": layers,
        "loads": [[_integers(row) for row in measured] for measured in percent],
        "metrics": {
            name: values for name in LAYER_METRICS if (values := _of_layers(run, name, layers, steps)) is not None
        },
    }


def layer_rows(run: Run) -> tuple[list[str], list[list[float | None]]]:
    """Return the names of the layers' metrics, and a row for each layer: its number and the newest values."""
    found = [match for name in run.metrics.series if (match := _OF_LAYER.fullmatch(name))]
    layers = sorted({int(match[1]) for match in found})
    names = [name for name in LAYER_METRICS if any(match[2] == name for match in found)]
    return names, [[layer, *(run.metrics.last(f"experts/layer_{layer}/{name}") for name in names)] for layer in layers]


def worst_layer(data: dict[str, Any]) -> int:
    """Return the index of the layer with the most uneven load in the newest measurement."""
    spread = [
        max(known) - min(known) if (known := [load for load in row if load is not None]) else 0
        for row in data["loads"][-1]
    ]
    return int(np.argmax(spread))


def load_spec(layers: int, experts: int) -> dict[str, Any]:
    """Return a heat map of layers and experts for one measurement, with numbers if there is enough space."""
    spec: dict[str, Any] = {
        "width": "container",
        "height": layers * max(11, min(26, 520 // layers)),
        "encoding": {
            "x": {
                "field": "expert",
                "type": "ordinal",
                "title": "expert",
                "axis": {"labelAngle": 0, "labelOverlap": True},
            },
            "y": {"field": "layer", "type": "ordinal", "title": "layer", "axis": {"labelOverlap": True}},
        },
        "layer": [
            {"mark": {"type": "rect", "tooltip": True}, "encoding": {"color": _LOAD_COLOR, "tooltip": _LOAD_TOOLTIP}}
        ],
    }
    if experts <= 32 and layers <= 48:
        dark = {"condition": {"test": "datum.load >= 1.1", "value": "#111111"}, "value": "#ffffff"}
        text = {"field": "text", "type": "nominal"}
        mark = {"type": "text", "fontSize": 10 if layers <= 26 else 8}
        spec["layer"].append({"mark": mark, "encoding": {"text": text, "color": dark}})
    return spec


def over_time_spec(rows: int, title: str, color: dict[str, Any], tooltip: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a heat map over time; each datum spans `x` to `x2` in its `row`."""
    return {
        "width": "container",
        "height": rows * max(9, min(22, 420 // rows)),
        "mark": {"type": "rect"},
        "encoding": {
            "x": {**X, "scale": {"zero": False, "nice": False}},
            "x2": {"field": "x2"},
            "y": {"field": "row", "type": "ordinal", "title": title, "axis": {"labelOverlap": True}},
            "color": color,
            "tooltip": [{"field": "b", "type": "quantitative", "title": "step", "format": ","}, *tooltip],
        },
    }


def expert_specs(data: dict[str, Any]) -> dict[str, Any]:
    layers, experts = len(data["layers"]), len(data["loads"][0][0])
    of_layer = [
        {"field": "row", "type": "ordinal", "title": "layer"},
        {"field": "load", "type": "quantitative", "title": "value", "format": ".4~g"},
    ]
    return {
        "load": load_spec(layers, experts),
        "load_over_time": over_time_spec(
            experts, "expert", _LOAD_COLOR, [{**_LOAD_TOOLTIP[1], "field": "row"}, _LOAD_TOOLTIP[2]]
        ),
        "layers_over_time": over_time_spec(layers, "layer", _COLOR, of_layer),
    }


def _numbers(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1]), int(match[2])


def _at(run: Run, name: str, steps: np.ndarray) -> np.ndarray:
    """Return the values at these steps, with NaN at steps where the metric was not logged."""
    series = run.metrics.series[name]
    places = np.minimum(np.searchsorted(series.steps, steps), len(series.steps) - 1)
    return np.where(series.steps[places] == steps, series.values[places], np.nan)


def _integers(values: np.ndarray) -> list[int | None]:
    return [int(value) if np.isfinite(value) else None for value in values.tolist()]


def _of_layers(run: Run, name: str, layers: list[int], steps: np.ndarray) -> list[list[float | None]] | None:
    names = [f"experts/layer_{layer}/{name}" for layer in layers]
    if not any(each in run.metrics.series for each in names):
        return None
    missing = np.full(len(steps), np.nan)
    columns = [_at(run, each, steps) if each in run.metrics.series else missing for each in names]
    return [rounded(row, 3) for row in np.stack(columns, axis=1)]


_LEGEND = {"orient": "top", "gradientLength": 220, "gradientThickness": 10, "title": None}
_COLOR = {"field": "load", "type": "quantitative", "scale": {"scheme": "cividis"}, "legend": _LEGEND}
_LOAD_COLOR = {**_COLOR, "scale": {"scheme": "cividis", "domain": [0, 2], "clamp": True}}
_LOAD_TOOLTIP = [
    {"field": "layer", "type": "ordinal", "title": "layer"},
    {"field": "expert", "type": "ordinal", "title": "expert"},
    {"field": "load", "type": "quantitative", "title": "load (1: balanced)", "format": ".2f"},
]
