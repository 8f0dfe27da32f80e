"""Folders that many tests read: tiny Mixtrals in Hugging Face's form, and converted by mixoff."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from support import interpreter  # noqa: F401 - first: what else is here may import triton

# isort: split

from mixoff.convert import quantize_checkpoint
from mixoff.quantization import Scheme
from support import tiers
from support.hub_fixtures import hub  # noqa: F401 - a fixture of all tests
from support.tiny import MIXED, random_mixtral

torch.set_num_threads(1)  # the models are tiny, and machines that run tests are busy
settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
settings.load_profile("seeded")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--everything", action="store_true", help="run the full tier, too")


def pytest_configure(config: pytest.Config) -> None:
    tiers.run_everything(config.getoption("everything"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("everything"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in {*left_out}]


@pytest.fixture(scope="session")
def tiny_mixtral(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save `random_mixtral(...)` as transformers does; don't change what is in the folder."""

    @cache
    def save(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("source")
        random_mixtral(**settings).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def quantized(
    tiny_mixtral: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Convert `tiny_mixtral(...)` with a scheme; don't change what is in the folder."""

    @cache
    def convert(scheme: Scheme = MIXED, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("converted") / "model"
        return quantize_checkpoint(tiny_mixtral(**settings), folder, scheme, progress=False)

    return convert
