"""The GPU's kernels on this processor: building them, and problems as files for them."""
