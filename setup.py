"""Installs the package ``u2seg``, a project extension for Detectron2, with its configs as package data."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE_ROOT = "projects/U2Seg"


def read_version() -> str:
    """Returns the version string that ``u2seg/version.py`` holds, without importing the package."""
    namespace: dict[str, str] = {}
    exec((ROOT / PACKAGE_ROOT / "u2seg" / "version.py").read_text(), namespace)
    return namespace["__version__"]


setup(
    name="u2seg",
    version=read_version(),
    description="Unsupervised instance, semantic and panoptic segmentation for Detectron2 (U2Seg, LUSS/PASS)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": PACKAGE_ROOT, "u2seg.configs": "configs"},
    packages=[*find_packages(PACKAGE_ROOT), "u2seg.configs"],
    package_data={"u2seg.configs": ["*.yaml", "*/*.yaml", "*/*/*.yaml"]},
    # Detectron2 is not listed: PyPI's project of that name holds nothing, and a user's own build must stay untouched.
    install_requires=[
        "torch>=2.0",
        "torchvision>=0.15",
        "timm>=1.0",
        "numpy>=1.24",
        "pillow>=10.1",
        "scipy>=1.10",
        "opencv-python-headless>=4.8",
        "pycocotools>=2.0.7",
        "pyarrow>=15",
        "fvcore",
        "iopath",
        "tqdm",
        "tabulate",
    ],
    extras_require={
        # Both import as ``faiss``; choose one.
        "cpu": ["faiss-cpu>=1.8"],
        "gpu": ["faiss-gpu>=1.8"],
        "fast-eval": ["hotcoco>=1.3", "faster-coco-eval>=1.8"],
        "dev": ["pytest", "hypothesis", "ruff", "pydensecrf2", "hotcoco>=1.3", "panopticapi-lite"],
    },
)
