"""A set that is held in parts by several processes: how they talk with each other."""

from diffgen.sharding.ranks import PATIENCE_S, TIMEOUT_S, Ranks

__all__ = ["PATIENCE_S", "TIMEOUT_S", "Ranks"]
