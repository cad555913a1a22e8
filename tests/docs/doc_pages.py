"""The pages of the documentation, and the commands in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """Returns the u2seg command lines in a page's shell blocks."""
    shell = re.sub(r"\\\n *", "", "\n".join(blocks(text, "bash"))).splitlines()
    found = [line.split(" #")[0].strip() for line in shell]
    return [line for line in found if line.split()[:1] == ["u2seg"]]


COMMAND_LINES = [(page_id(page), line) for page in PAGES for line in command_lines(page.read_text())]
