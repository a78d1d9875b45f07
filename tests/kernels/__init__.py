"""Parts of kernels/ below the operators: launches, index arithmetic, tiles, copies for TMA."""
