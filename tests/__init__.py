"""Tests of trinn, and programs that measure it."""

import os

# Limit oneDNN, torch's library on x86, to AVX2. The bfloat16 instructions of newer CPUs flush subnormal values, and end the
# process in some convolutions with dilation and channels_last weights.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
