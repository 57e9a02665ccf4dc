"""Chromium draws every chart of a report, without network and without an error."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.browser import CHROMIUM, browse, drawn
from tests.helpers.report_runs import HOSTILE, Shape, write_run
from train.report.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


_POINT_AND_SLIDE = """<script>
const once = setInterval(() => {
  if (document.documentElement.dataset.ready !== "true") return;
  clearInterval(once);
  const slider = document.querySelector('[data-slider="0"]');
  slider.value = 0;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const { left, top, width, height } = document.querySelector('[data-chart="loss"] svg').getBoundingClientRect();
  const place = { bubbles: true, clientX: left + width / 2, clientY: top + height / 2 };
  const chart = document.elementFromPoint(place.clientX, place.clientY);
  for (const kind of ["pointerover", "pointermove"]) chart.dispatchEvent(new PointerEvent(kind, place));
  setTimeout(() => {
    const below = document.elementFromPoint(place.clientX, place.clientY);
    for (const kind of ["pointerover", "pointermove"]) below.dispatchEvent(new PointerEvent(kind, place));
    document.title = document.getElementById("vg-tooltip-element").textContent;
  }, 500);
}, 100);
</script>"""
"""Moves the slider to the first measurement, moves the pointer to the middle of the loss, and stores the tooltip as
title."""


def test_every_chart_is_drawn_and_interactive(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Shape(streams=("web", HOSTILE), text=HOSTILE))
    page = write_report([folder])
    html, closed, rest = page.read_text("utf-8").rpartition("</body>")
    page.write_text(html + _POINT_AND_SLIDE + closed + rest, "utf-8")
    dom, errors = browse(page, "--dump-dom", "--window-size=1280,1600", at="#x=h&log=1&theme=dark")
    assert errors == []
    assert len(drawn(dom)) >= 18
    assert all(drawn(dom))
    assert 'data-ready="true"' in dom
    assert '<p id="failure" class="alarms" hidden="">' in dom
    assert "<title>linetrainvalue" in dom  # the tooltip
    assert re.search(r"<output data-step-of=.0.>step 20</output>", dom)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("at", "size", "runs"),
    [
        ("#theme=light", (1280, 5200), 1),
        ("#theme=dark&x=tok", (1280, 5200), 1),
        ("#theme=light&x=h&log=1", (420, 9000), 1),
        ("#theme=light", (1280, 2400), 2),
    ],
)
def test_screenshots(at: str, size: Sequence[int], runs: int, tmp_path: Path) -> None:
    """Write screenshots to pytest's folder (--basetemp) for a visual check."""
    from PIL import Image

    folders = [
        write_run(tmp_path / name, Shape(name=name, seed=n, resumed=n == 0)) for n, name in enumerate("ab"[:runs])
    ]
    page, picture = write_report(folders, tmp_path / "report.html"), tmp_path / "report.png"
    _, errors = browse(page, f"--screenshot={picture}", f"--window-size={size[0]},{size[1]}", at=at)
    assert errors == []
    image = Image.open(picture).convert("RGB")
    assert image.size == tuple(size)
    colors = {color for _, color in image.getcolors(image.width * image.height) or []}
    background = image.getpixel((2, image.height - 2))
    assert background == ((20, 23, 27) if "dark" in at else (255, 255, 255))
    assert {(0, 114, 178), (79, 168, 224)} & colors, "no line has the first colour of the palette"
