"""What the tests share: one thread each, and the folders with data that lie beside the checkout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tensors of the tests are tiny


@pytest.fixture(autouse=True)
def same_process_settings() -> Iterator[None]:
    """Undo what a test changes in torch's settings of the process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


CHECKOUT = Path(__file__).resolve().parents[1]


def beside(name: str) -> Path:
    """The folder `name` of the shared data; SLATERL_PARITY replaces the one called parity."""
    if name == "parity" and "SLATERL_PARITY" in os.environ:
        return Path(os.environ["SLATERL_PARITY"])
    return CHECKOUT.parent / "shared" / name


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared("reference"): that folder of the shared data; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        if not beside(name).is_dir():
            pytest.skip(f"no folder {name} beside the checkout")
        return beside(name)

    return folder


@pytest.fixture(scope="session", params=sorted(beside("parity").glob("*.npz")), ids=lambda path: path.stem)
def parity_file(request: pytest.FixtureRequest) -> Path:
    """Each recorded episode of the published simulator; without any, its tests are skipped."""
    return request.param
