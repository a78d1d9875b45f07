"""Convolution in boxes for tests: of few channels too, and in the interpreter."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from trinn.kernels import conv2d_tma, conv2d_tma_wgrad, first2d, launch


@contextlib.contextmanager
def in_boxes() -> Iterator[list[str]]:
    """Within, boxes wherever they can be, large ones stored in halves; the names of their kernels that are started."""
    names: list[str] = []

    def noted(kernel: Any, *args: Any, **options: Any) -> None:
        names.append(kernel.__name__)
        launch.launch(kernel, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (conv2d_tma, conv2d_tma_wgrad):
            patch.setattr(module, "launch", noted)
        patch.setattr(conv2d_tma, "interpreted", True)
        patch.setattr(conv2d_tma, "FEWEST", 8)
        patch.setattr(conv2d_tma, "WIDE", 16)
        patch.setattr(conv2d_tma, "STORED_AT_ONCE", 16)
        patch.setattr(first2d, "STARTED", -(2**40))
        yield names
