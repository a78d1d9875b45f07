"""Kernels are compiled, and none runs, without a GPU: to be imported before Triton and trinn."""

import os
import warnings

os.environ["TRITON_INTERPRET"] = "0"
warnings.filterwarnings("ignore", "trinn cannot compute here")
