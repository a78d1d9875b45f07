"""Networks and custom layers on trinn's layers, and the initialisation of a model."""

from typing import TYPE_CHECKING

from .alexnet import *
from .custom import *
from .init import *
from .lenet import *
from .mlp import *

# Type checkers follow the imports, and accept no computed list. The modules of this package are not callable.
if not TYPE_CHECKING:
    __all__ = [name for name, value in globals().items() if callable(value)]
