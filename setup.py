"""Every fact of the package: what it is called, what it needs, what it carries."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
DEMO = "data/demo-mixtral"


def version() -> str:
    """Read `__version__` from mixoff/_version.py, without importing what it needs."""
    text = (HERE / "mixoff" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('setup.py: mixoff/_version.py has no line `__version__ = "..."`.')
    return found[1]


# The recipe that builds the demo model imports mixoff, so mixoff installs without it, too.
demo = ["mixoff.demo_mixtral"] if (HERE / DEMO / "config.json").is_file() else []

setup(
    name="mixoff",
    version=version(),
    description="Run mixture-of-experts models larger than fast memory, and see the cache at work",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["mixture of experts", "offloading", "quantization", "cache", "Mixtral", "HQQ"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["mixoff", "mixoff.*"]), *demo],
    package_dir={"mixoff.demo_mixtral": DEMO},
    package_data={
        "mixoff": ["py.typed"],
        "mixoff.demo_mixtral": ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.md"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.13,<6",
        "huggingface_hub>=1.5,<3",
        "safetensors>=0.5",
        "ipywidgets>=7.7,<9",
        "pandas>=2.2",
        "matplotlib>=3.8",
        "typer>=0.15",
        "rich>=13.7",
        "jinja2>=3.1.6",
        "numpy>=1.26",
        "psutil>=5.9",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "hqq>=0.2.8",
            "mypy>=1.15",
            "ruff>=0.11",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.17",
            "packaging>=24",
            "build>=1.2",
        ],
        "cpu": ["llvmlite>=0.45"],
        "triton": ["triton>=3.2; sys_platform == 'linux'"],  # torch's CUDA builds bring it
        "notebook": ["jupyterlab>=4.2"],
        "colab": ["jupyter_ui_poll>=1.0"],
        "browser": ["playwright>=1.45"],
    },
    entry_points={"console_scripts": ["mixoff = mixoff.cli:main"]},
)
