"""Sphinx configuration of the documentation site; `make docs` builds it."""

import json
import os
import re
from pathlib import Path

from u2seg import __version__

project = "U2Seg for Detectron2"
version = release = __version__

source_suffix = {".md": "markdown", ".ipynb": "markdown"}
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path: list[str] = []

myst_heading_anchors = 3
autodoc_member_order = "bysource"

# Pages of the site whose text lies elsewhere in the repository, where readers and tools look for it.
SHARED_PAGES = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md", "datasets": "datasets/README.md"}


def setup(app) -> None:
    """Registers :func:`prepare_page`."""
    app.connect("source-read", prepare_page)


def prepare_page(app, docname: str, source: list[str]) -> None:
    """Puts the shared text into its page, and points links between files of the repository at pages of the site."""
    notebook = Path(app.srcdir) / f"{docname}.ipynb"
    if notebook.is_file():
        source[0] = notebook_text(notebook)
        return
    path = SHARED_PAGES.get(docname, f"docs/{docname}.md")
    text = (Path(app.srcdir).parent / path).read_text(encoding="utf-8")
    source[0] = re.sub(r"\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)", lambda match: _site_link(path, *match.groups("")), text)


def notebook_text(path: Path) -> str:
    """Returns a notebook as a page: its text, and its code in blocks; outputs are left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in texts)


def _site_link(page: str, target: str, anchor: str) -> str:
    path = os.path.normpath(os.path.join(os.path.dirname(page), target))
    if path == "README.md":
        return "](index.md)"
    for docname, shared in SHARED_PAGES.items():
        if path == shared:
            return f"]({docname}.md{anchor})"
    return f"]({os.path.relpath(path, 'docs')}{anchor})"
