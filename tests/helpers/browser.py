"""Opens HTML pages in Chromium, without network."""

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9")


def browse(page: Path, *arguments: str, at: str = "") -> tuple[str, list[str]]:
    """Return Chromium's output and the errors on the page's console. at: #x=...&theme=..."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={page.parent / 'chromium'}", "--virtual-time-budget=20000", *OFFLINE, *arguments]
    done = subprocess.run([*command, f"file://{page}{at}"], capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def drawn(dom: str) -> list[bool]:
    """Return, for each chart, whether it has marks."""
    charts = re.split(r'<div class="chart[" ]', dom.partition("<script")[0])[1:]
    marks = re.compile(r'class="mark-(line|rect|symbol)[^"]* role-mark[^"]*"[^>]*>\s*<path')
    return [marks.search(chart) is not None for chart in charts]
