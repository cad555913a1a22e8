"""The configuration files that the package ships, found by name from anywhere."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def get_config_file(name: str) -> str:
    """Returns the path of a configuration file that the package ships.

    Args:
        name: path relative to the project's ``configs/``, for example ``"quick_schedules/scenes.yaml"``.

    Raises:
        FileNotFoundError: no such file; the message lists those that exist.
    """
    # Installed: the configs are package data. Editable install or checkout: they lie at the repository's root.
    roots = [_PACKAGE / "configs", _PACKAGE.parents[2] / "configs"]
    for root in roots:
        if (root / name).is_file():
            return str(root / name)
    known = sorted({path.relative_to(root).as_posix() for root in roots for path in root.rglob("*.yaml")})
    raise FileNotFoundError(f"No configuration file {name!r}; available: {', '.join(known)}")


def find_base(base: str, config_file: str | Path) -> str:
    """Returns where the file lies that a configuration names as its ``_BASE_``.

    Args:
        base: an absolute path, an address (``https://...``), a path relative to ``config_file``, or the name of a shipped file, for
            example ``"quick_schedules/photos.yaml"``; a file beside ``config_file`` wins over a shipped one.
        config_file: the file that names it.

    Raises:
        FileNotFoundError: neither there nor shipped; the message lists the shipped ones.
    """
    if base.startswith("~"):
        return str(Path(base).expanduser())
    if base.startswith("/") or "://" in base:
        return base
    beside = Path(config_file).parent / base
    return str(beside) if beside.is_file() else get_config_file(base.removeprefix("configs/"))
