"""The backends that take tensors on the CPU; those of GPUs have suites of their own."""

from diffgen.backends import registry

ELSEWHERE = ("cuda", "triton", "triton:interpreted")
NAMES = [name for name in registry.names() if name not in ELSEWHERE]
USABLE = [name for name in NAMES if registry.get(name).unavailable() is None]
