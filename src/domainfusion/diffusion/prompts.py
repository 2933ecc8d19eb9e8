"""Prompts: class words, and style words from the LDM's own vocabulary, never a word that names a held-out domain."""

from __future__ import annotations

import re

import numpy as np

from domainfusion.config import GenerateConfig


def allowed_styles(styles: tuple[str, ...], *held_out: str | None) -> tuple[str, ...]:
    """The style words that share no word with a held-out domain's name (nor contain one, nor are contained in one).

    Args:
        held_out: the target, and a second one where there is one; None is none.

    >>> allowed_styles(("noto mono", "streamline pixel", "pixel outline"), "pixel")
    ('noto mono',)
    """
    named = [word for domain in held_out if domain is not None for word in _words(domain)]

    def names_one(style: str) -> bool:
        # Words of one or two letters ("3d", "bw") count when they are the same, not when another happens to hold them.
        return any(
            word == name or (min(len(word), len(name)) > 2 and (word in name or name in word))
            for word in _words(style)
            for name in named
        )

    return tuple(style for style in styles if not names_one(style))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", text.casefold()) if word]


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
