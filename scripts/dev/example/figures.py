"""The example's figures, drawn from the metrics of its runs, and screenshots of the pages: the report, the page about
the data, and the page about a curation."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from scripts.dev.example.commands import ROOT
from scripts.dev.example.steps import RUNS, STREAMS, Settings
from train.report.reading.find import find_run
from train.report.reading.metrics import Metrics, read_metrics

COLORS = ("#0072B2", "#D55E00", "#009E73")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SHOWN = ("loss", "0-share-0", "0-share-1")
"""Charts that are included in the screenshot of the report, in addition to the expert loads over time."""


def draw_figures(settings: Settings, folder: Path) -> None:
    """Write loss.png and experts.png."""
    metrics = {name: read_metrics(find_run(settings.run(name)).metrics) for name in RUNS}
    _draw_losses(metrics, folder / "loss.png")
    _draw_experts(metrics["pretrain"], folder / "experts.png")


def _draw_losses(metrics: dict[str, Metrics], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for stream, color in zip(STREAMS, COLORS, strict=True):
        series = metrics["pretrain"].series.get(f"streams/{stream}/loss")
        if series is not None:
            axes[0].plot(series.steps, _smooth(series.values), color=color, label=stream)
    for panel, name in zip(axes[1:], RUNS[1:], strict=True):
        train = metrics[name].series["loss/train/lm"]
        heldout = metrics[name].series["metrics/eval/LanguageCrossEntropy"]
        panel.plot(train.steps, _smooth(train.values), color=COLORS[0], label="train")
        panel.plot(heldout.steps, heldout.values, color=COLORS[1], marker="o", label="held-out")
    titles = ("pretraining, by stream", "fine-tuning", "LoRA")
    for panel, title in zip(axes, titles, strict=True):
        panel.set(title=title, xlabel="step", ylabel="loss (nats per token)")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(file, dpi=90)


def _smooth(values: np.ndarray, window: int = 9) -> np.ndarray:
    """Return the moving average: for each value, the mean of this value and up to `window - 1` values before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _draw_experts(metrics: Metrics, file: Path) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    norm = Normalize(0, 2)
    loads = metrics.matching("experts/layer_", "")
    layers = sorted({name.partition("/")[0] for name in loads if "/load/expert_" in name})
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for layer, panel in zip(layers, panels, strict=True):
        series = [value for name, value in loads.items() if name.startswith(f"{layer}/load/expert_")]
        load_EN = np.array([one.values for one in series]) * len(series)
        edges = (series[0].steps[0] - 0.5, series[0].steps[-1] + 0.5, len(series) - 0.5, -0.5)
        panel.imshow(load_EN, norm=norm, cmap="cividis", aspect="auto", extent=edges, interpolation="none")
        panel.set(title=f"layer {layer}", xlabel="step")
    panels[0].set_ylabel("expert")
    figure.colorbar(ScalarMappable(norm, "cividis"), ax=list(panels), label="load (1 = balanced)", extend="max")
    figure.savefig(file, dpi=90)


def picture_report(report: Path, picture: Path) -> bool:
    """Use Chromium to write a screenshot of the main charts of a report. Returns False if Chromium is not installed."""
    shown = ",".join(f'[data-chart="{chart}"]' for chart in SHOWN) + ',[data-experts="load_over_time"]'
    hidden = f"figure:not(:has({shown})), section:not(:has({shown},dl)), main > section > :is(p.note, details, .scroll)"
    return _picture(report, picture, f"{hidden}, .timeline", height=1680)


def picture_data(config: str, picture: Path) -> bool:
    """Use Chromium to write a screenshot of the main parts of the page that scripts/inspect_data.py writes about a
    config. Returns False if Chromium is not installed."""
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary, "data.html")
        script = ROOT / "scripts" / "inspect_data.py"
        subprocess.run([sys.executable, script, config, "--html", page, "--rows", "1"], cwd=ROOT, check=True)
        hidden = (
            "main > section:not(#sources, #mixture, #lengths, #rows), #sources > :not(h2, .scroll), "
            "#mixture > :not(h2, .charts), #lengths > details, #lengths > .charts ~ .charts, "
            "#rows > p.note, #rows > details ~ details"
        )
        return _picture(page, picture, hidden, height=1330)


def picture_curation(page: Path, picture: Path, step: str) -> bool:
    """Use Chromium to write a screenshot of the main parts of the page curation.html, with the reasons, the scores and
    the first samples of a step, such as `3 gopher_quality`. Returns False if Chromium is not installed."""
    hidden = (
        "#costs, #config, footer, nav, .step:not([open]), #funnel > :not(h2, .charts, .scroll), "
        ".step > :is(.note, .scroll:not(:has(.bars)), pre, details, h3:has(+ pre), h3:has(+ .samples)), "
        ".step > .charts > :nth-child(n + 3), .step > .samples > :nth-child(n + 3), .step > .samples ~ .samples"
    )
    return _picture(page, picture, hidden, height=1720, opened=step)


def _picture(page: Path, picture: Path, hidden: str, *, height: int, opened: str = "") -> bool:
    """Write a screenshot of the page without the elements that the CSS selector `hidden` selects. The part of the page
    whose title begins with `opened` is opened."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        return False
    style = f"<style>{hidden} {{display: none !important}}</style>"
    html = page.read_text("utf-8").replace("</head>", f"{style}</head>", 1)
    if opened:
        html = html.replace(f"><summary>{opened}", f" open><summary>{opened}", 1)
    with tempfile.TemporaryDirectory() as temporary:
        file, raw = Path(temporary, "page.html"), Path(temporary, "picture.png")
        file.write_text(html, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
        options += [f"--user-data-dir={temporary}/chromium", f"--window-size=1200,{height}", f"--screenshot={raw}"]
        offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
        command = [program, *options, *offline, f"file://{file}#theme=light"]
        subprocess.run(command, capture_output=True, timeout=180, check=True)
        _shrink(raw, picture)
    return True


def _shrink(raw: Path, picture: Path) -> None:
    from PIL import Image

    image = Image.open(raw).convert("RGB")
    image.quantize(96, dither=Image.Dither.NONE).save(picture, optimize=True)
