"""A hook for mkdocs (see mkdocs.yml). It is needed because the same pages must also work on GitHub.

- The navigation is read from docs/index.md: headings are groups, and list items are pages.
- README.md, CONTRIBUTING.md and CHANGELOG.md, which are outside docs/, become pages.
- Every other file of the repository that a page links to becomes a page with the text of that file.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that become pages, and the names of these pages."""

_LINK = re.compile(r"""(\]\(|(?:src|srcset)=")([^)\s#:"]+)(#[^)\s"]*)?(?=[)"])""")
"""The target of a link or an image, in Markdown or HTML. Targets with a colon are excluded, because they are URLs."""
_FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".json": "json", ".md": "markdown"}
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = navigation((Path(config.docs_dir) / "index.md").read_text("utf-8"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for file in list(files.documentation_pages()):
        for target in _targets(file.content_string, _folder(file.src_uri)):
            page = _page_of(target)
            if page.startswith("files/") and files.get_file_from_path(page) is None and (ROOT / target).exists():
                files.append(File.generated(config, page, content=_shown(target), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith("files/"):
        return markdown
    folder = _folder(page.file.src_uri)
    here = PurePosixPath(page.file.src_uri).parent

    def on_the_site(link: re.Match[str]) -> str:
        target = os.path.relpath(_page_of(_normal(folder, link[2])), here)
        return f"{link[1]}{target}{link[3] or ''}"

    def for_the_site(part: str) -> str:
        # Python-Markdown needs this attribute to process Markdown inside an HTML element. GitHub ignores the attribute.
        return _LINK.sub(on_the_site, part).replace("<details>", '<details markdown="1">')

    return _outside_code(markdown, for_the_site)


def navigation(index: str) -> list[Any]:
    """Return the groups of docs/index.md with their pages."""
    nav: list[Any] = [{"Documentation": "index.md"}]
    for line in index.splitlines():
        if line.startswith("## "):
            nav.append({line[3:]: []})
        elif item := re.match(r"- \[([^\]]+)\]\(([^)#]+)\)", line):
            target = PAGES.get(item[2].removeprefix("../"), item[2])
            next(iter(nav[-1].values())).append({item[1]: target})
    return nav


def _folder(page: str) -> PurePosixPath:
    """Return the folder of the repository to which the links of a page are relative."""
    return PurePosixPath() if page in PAGES.values() else (PurePosixPath("docs") / page).parent


def _normal(folder: PurePosixPath, target: str) -> str:
    return os.path.normpath(folder / target)


def _targets(markdown: str, folder: PurePosixPath) -> list[str]:
    """Return the files of the repository that a page links to."""
    return [_normal(folder, link[1]) for link in _LINK.findall(_FENCED.sub("", markdown))]


def _page_of(target: str) -> str:
    """Return the path on the site for a file of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return PAGES.get(target, f"files/{target}.md")


def _shown(target: str) -> str:
    """Return a page that shows a folder, or a file that is not a page itself."""
    path, fence = ROOT / target, "`" * 5
    if path.is_dir():
        names = sorted(f"- `{item.name}{'/' if item.is_dir() else ''}`" for item in path.iterdir())
        return f"{_NOT_SEARCHED}# {target}/\n\n" + "\n".join(names)
    language = _LANGUAGES.get(path.suffix, "text")
    return f"{_NOT_SEARCHED}# {target}\n\n{fence}{language}\n{path.read_text('utf-8')}\n{fence}\n"


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return the page after applying `change` to all text outside of fenced blocks."""
    parts, end = [], 0
    for fenced in _FENCED.finditer(markdown):
        parts += [change(markdown[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, change(markdown[end:])])
