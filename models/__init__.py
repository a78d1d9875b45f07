"""Networks and custom layers on trinn's layers, and the initialisation of a model."""

from typing import TYPE_CHECKING

from .alexnet import *
from .custom import *
from .init import *
from .lenet import *
from .mlp import *

# Hidden from type checkers, which follow the imports and accept no computed list. `callable` leaves out the submodules.
if not TYPE_CHECKING:
    __all__ = [name for name, value in globals().items() if callable(value)]
