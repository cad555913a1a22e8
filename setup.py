"""Where the package and its configs lie; everything else about it is in ``pyproject.toml``."""

from setuptools import find_packages, setup

PACKAGE_ROOT = "projects/U2Seg"

setup(
    package_dir={"": PACKAGE_ROOT, "u2seg.configs": "configs"},
    packages=[*find_packages(PACKAGE_ROOT), "u2seg.configs"],
    package_data={
        "u2seg": ["py.typed"],
        "u2seg.configs": ["*.yaml", "*/*.yaml"],
        "u2seg.visualization": ["templates/*.j2"],
    },
)
