"""Settings to compile kernels without running them, and without a GPU. Import this module before Triton and trinn."""

import os
import warnings

os.environ["TRITON_INTERPRET"] = "0"
warnings.filterwarnings("ignore", "trinn cannot compute here")  # true, but nothing will run
