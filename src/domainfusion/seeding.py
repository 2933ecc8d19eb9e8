"""Randomness as a function of names and numbers: DomainBed's seed hash, and generators derived from it.

Nothing here keeps a state: the generator of (seed, step) is the same whenever it is asked for, so resuming a run needs
no saved sampler.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def seed_hash(*args: Any) -> int:
    """DomainBed's seed: `int(md5(str(args)), 16) % 2**31`, NumPy integers taken as plain ones.

    >>> [seed_hash(0, i) for i in range(4)]
    [894182419, 1514274641, 1325548499, 1796103049]
    """
    plain = tuple(int(arg) if isinstance(arg, np.integer) else arg for arg in args)
    return int(hashlib.md5(str(plain).encode()).hexdigest(), 16) % 2**31


def derive_numpy_rng(*args: Any) -> np.random.Generator:
    """A NumPy generator that is a function of `args` (strings and numbers)."""
    return np.random.default_rng(seed_hash(*args))
