"""Which image of another domain each image of a batch is paired with, for methods that mix domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pair_across_domains(domains: Sequence[np.ndarray], rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, partners) of each domain: the partners are images of the domain that follows it on a random circle.

    Each domain is on the left of one pair and on the right of one, as in DomainBed; where domains are equally large,
    so is each image. A single domain is paired with itself.

    Args:
        domains: by domain, the positions of its images in a batch; none may be empty.

    Returns:
        A pair for each domain, both arrays as long as the domain has images. Partners are drawn in a random order,
        without replacement as far as the other domain reaches.
    """
    circle = rng.permutation(len(domains))
    pairs = []
    for left, right in zip(circle, np.roll(circle, -1), strict=True):
        order = rng.permutation(len(domains[right]))
        pairs.append((domains[left], domains[right][np.resize(order, len(domains[left]))]))
    return pairs
