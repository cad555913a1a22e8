"""The documentation names commands, keys, files and Python names that exist, and keeps its style."""

import ast
import re
import shlex
import struct
from importlib import import_module

import pytest
from detectron2.config import CfgNode, get_cfg
from doc_pages import COMMAND_LINES, PAGES, ROOT, blocks, command_lines, page_id
from u2seg import add_u2seg_config
from u2seg.cli.main import COMMANDS, parse_arguments

FENCE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
MAX_PROSE = 100
# Configurations that a reader writes or a run leaves.
OWN_FILES = {"my.yaml", "few.yaml", "config.yaml", "output/photos/config.yaml"}
# Spelling and words that the project does not use; "center" and so on are the ones it does.
FORBIDDEN = re.compile(
    r"\b(pictures?|colour\w*|grey|centre\w*|neighbours?|behaviour\w*|data sets?|folders?|rooms?|houses?)\b",
    re.IGNORECASE,
)


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


def full_config() -> CfgNode:
    cfg = get_cfg()
    add_u2seg_config(cfg)
    return cfg


def has_key(cfg: CfgNode, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(cfg, CfgNode) or part not in cfg:
            return isinstance(cfg, CfgNode) and cfg.is_new_allowed()
        cfg = cfg[part]
    return True


def shipped(name: str) -> bool:
    return (ROOT / "configs" / name).is_file() or bool(list((ROOT / "configs").glob(f"**/{name}")))


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=[line[:70] for _, line in COMMAND_LINES])
def test_command_lines_parse(page, line):
    words = shlex.split(line.split(" > ")[0])[1:]
    command, args = parse_arguments(words)
    assert command.__name__.endswith(words[0].replace("-", "_"))
    unknown = [key for key in getattr(args, "opts", [])[::2] if not has_key(full_config(), key)]
    assert not unknown, f"{page}: no such keys"
    config_file = getattr(args, "config_file", None)
    own = (None, "my.yaml", "few.yaml", "output/photos/config.yaml")
    elsewhere = config_file in own or config_file.startswith("hf://")
    assert elsewhere or shipped(config_file), f"{page}: no configuration {config_file}"


def test_every_command_is_shown_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if not re.search(rf"`u2seg {name}[` ]", text)] == []


def test_a_wrong_command_line_is_noticed(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["labels", "photos", "--config-file", "my.yaml", "--output", "x", "--no-such-option"])
    assert "--no-such-option" in capsys.readouterr().err
    assert command_lines("```bash\nu2seg show \\\n  labels # why\nls\n```\n") == ["u2seg show labels"]
    assert has_key(full_config(), "MASKS.TAU") and not has_key(full_config(), "MASKS.TAUS")


@pages
def test_relative_links_resolve(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page_id(page)} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{page_id(page)} links to {target}"


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_prose_lines_are_short(page):
    """Tables, code and lines that are one unbreakable link may be longer."""
    for line in FENCE.sub("", page.read_text()).splitlines():
        prose = not line.lstrip().startswith("|") and not line.startswith("    ") and len(line.split()) > 2
        assert len(line) <= MAX_PROSE or not prose, f"{page_id(page)}: {len(line)} columns: {line}"


@pages
def test_no_forbidden_words(page):
    found = {match.group() for match in FORBIDDEN.finditer(page.read_text())}
    assert not found, f"{page_id(page)}: {found}"


@pages
def test_configuration_keys_exist(page):
    cfg = full_config()
    sections = "|".join(sorted(key for key in cfg if isinstance(cfg[key], CfgNode)))
    keys = set(re.findall(rf"\b((?:{sections})(?:\.[A-Z][A-Z0-9_]*)+)\b", page.read_text()))
    assert [key for key in sorted(keys) if not has_key(cfg, key)] == [], page_id(page)


@pages
def test_named_configurations_exist(page):
    names = set(re.findall(r"[\w/*-]+\.yaml", page.read_text())) - {
        "my.yaml",
        "few.yaml",
        "config.yaml",
        "data.yaml",
        "output/photos/config.yaml",
    }
    names = {name.removeprefix("configs/") for name in names if not name.startswith(("-", "//"))}  # "//": on the Hub
    assert [name for name in sorted(names) if not shipped(name) and not (ROOT / name).is_file()] == [], page_id(page)


@pages
def test_python_names_exist(page):
    for name in sorted(set(re.findall(r"`(u2seg(?:\.\w+)+)", page.read_text()))):
        parts = name.split(".")[1:]
        found = import_module("u2seg")
        for depth, part in enumerate(parts, start=1):
            if not hasattr(found, part):
                import_module(".".join(["u2seg", *parts[:depth]]))
            found = getattr(found, part)


@pages
def test_python_blocks_import_what_exists(page):
    for block in blocks(page.read_text(), "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "u2seg":
                absent = [alias.name for alias in node.names if not hasattr(import_module(node.module), alias.name)]
                assert not absent, f"{page_id(page)}: {node.module} has no {absent}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "u2seg":
                assert hasattr(import_module("u2seg"), node.attr), f"{page_id(page)}: u2seg.{node.attr}"


def test_the_image_of_the_demo_is_small():
    data = (ROOT / "docs/images/demo.jpg").read_bytes()
    assert len(data) < 200_000
    assert struct.unpack(">H", data[:2])[0] == 0xFFD8, "a JPEG"
