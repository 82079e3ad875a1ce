"""Backends of the two ops; importing this package fills the registry.

Called, ``diffgen.backends()`` lists what can run here and why the others cannot.
"""

import sys

from diffgen.backends import cpu, cuda, eager, reference, triton
from diffgen.backends.listing import BackendStatus, CallableModule, describe

__all__ = ["BackendStatus", "cpu", "cuda", "describe", "eager", "reference", "triton"]

sys.modules[__name__].__class__ = CallableModule
