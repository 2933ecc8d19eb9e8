"""Prompts: class words, and style words from the LDM's own vocabulary, never a word that names the target."""

from __future__ import annotations

import re

import numpy as np

from domainfusion.config import GenerateConfig


def allowed_styles(styles: tuple[str, ...], target: str | None) -> tuple[str, ...]:
    """The style words that share no word with the target's name (nor contain it, nor are contained in it).

    >>> allowed_styles(("noto mono", "streamline pixel", "pixel outline"), "pixel")
    ('noto mono',)
    """
    if target is None:
        return styles
    named = [word for word in re.split(r"[^a-z0-9]+", target.lower()) if len(word) > 2]

    def names_target(style: str) -> bool:
        words = [word for word in re.split(r"[^a-z0-9]+", style.lower()) if len(word) > 2]
        return any(word in name or name in word for word in words for name in named)

    return tuple(style for style in styles if not names_target(style))


def compose_prompts(
    words: tuple[str, ...],
    labels: np.ndarray,
    config: GenerateConfig,
    styles: tuple[str, ...],
    rng: np.random.Generator,
) -> list[str]:
    """One prompt for each label (B,): the class in words, with one of `styles` drawn at random where there are any."""
    if not (config.style_words and styles):
        return [config.plain_template.format(label=words[label]) for label in labels]
    chosen = rng.integers(0, len(styles), len(labels))
    return [config.template.format(label=words[y], style=styles[s]) for y, s in zip(labels, chosen, strict=True)]
