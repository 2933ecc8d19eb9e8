"""Prompts never name the target; templates and style words do what they say."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domainfusion.config import GenerateConfig
from domainfusion.diffusion.prompts import allowed_styles, compose_prompts
from domainfusion.seeding import derive_numpy_rng

WORDS = st.sampled_from(["pixel", "Pixel", "pixelart", "art", "Sketch", "noto", "3d", "bw", "x", "mono", "été", "照片"])
NAMES = st.lists(WORDS, min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from([" ", "_", "-", ".", "  "]).map(lambda separator: separator.join(words))
)
ANYTHING = st.text(max_size=12)


def words_of(text: str) -> set[str]:
    """The words of a text: runs of letters and digits, in lower case."""
    found, word = set(), ""
    for character in [*text.casefold(), " "]:
        if character.isalnum():
            word += character
        elif word:
            found.add(word)
            word = ""
    return found


@given(styles=st.lists(NAMES, max_size=6).map(tuple), target=NAMES)
@example(styles=("3d render",), target="3d")
@example(styles=("Noto_PIXEL",), target="pixel-art")
@example(styles=("照片 mono",), target="照片")
def test_no_allowed_style_has_a_word_of_the_target(styles: tuple[str, ...], target: str) -> None:
    for style in allowed_styles(styles, target):
        assert not words_of(style) & words_of(target)
        for word in words_of(style):  # nor a longer word that holds one: "pixelart" names "pixel"
            assert not any(len(name) > 2 and name in word for name in words_of(target))
            assert not any(len(word) > 2 and word in name for name in words_of(target))


@given(styles=st.lists(NAMES, max_size=6).map(tuple), target=NAMES)
def test_styles_are_left_out_for_a_reason_only(styles: tuple[str, ...], target: str) -> None:
    allowed = allowed_styles(styles, target)
    assert list(allowed) == [style for style in styles if style in allowed]  # in their order
    for style in set(styles) - set(allowed):
        assert any(a in b or b in a for a in words_of(style) for b in words_of(target))


@given(styles=st.lists(ANYTHING, max_size=4).map(tuple), target=ANYTHING)
def test_any_text_is_taken(styles: tuple[str, ...], target: str) -> None:
    assert set(allowed_styles(styles, target)) <= set(styles)


def test_without_a_target_every_style_is_allowed() -> None:
    assert allowed_styles(("pixel", "ink"), None) == ("pixel", "ink")


def test_short_words_do_not_match_within_others() -> None:
    assert allowed_styles(("art deco", "a line drawing"), "bw a_r") == ("art deco",)


@given(target=NAMES, styles=st.lists(NAMES, min_size=1, max_size=5).map(tuple), seed=st.integers(0, 99))
def test_prompts_never_name_the_target(target: str, styles: tuple[str, ...], seed: int) -> None:
    prompts = compose_prompts(
        ("cow", "fruit"), np.array([0, 1, 1, 0]), GenerateConfig(), allowed_styles(styles, target),
        derive_numpy_rng("prompts", seed),
    )  # fmt: skip
    assert all(not words_of(prompt) & words_of(target) for prompt in prompts)
    assert ["cow" in prompt for prompt in prompts] == [True, False, False, True]


def test_templates() -> None:
    words, labels = ("cat", "{odd} dog"), np.array([1, 0])
    rng = np.random.default_rng(0)
    config = GenerateConfig(template="a {style} picture of {label}", plain_template="just {label}")
    assert compose_prompts(words, labels, config, ("ink",), rng) == [
        "a ink picture of {odd} dog",
        "a ink picture of cat",
    ]
    assert compose_prompts(words, labels, config, (), rng) == ["just {odd} dog", "just cat"]
    plain = GenerateConfig(style_words=False)
    assert compose_prompts(words, labels, plain, ("ink",), rng) == ["{odd} dog", "cat"]


def test_styles_are_drawn_evenly() -> None:
    styles = ("ink", "oil", "wax", "pen")
    prompts = compose_prompts(
        ("cat",), np.zeros(4000, dtype=np.int64), GenerateConfig(), styles, np.random.default_rng(0)
    )
    counts = Counter(re.fullmatch("cat, (.*)", prompt)[1] for prompt in prompts)
    assert set(counts) == set(styles)
    assert all(count == pytest.approx(1000, abs=110) for count in counts.values())  # 4 standard deviations


def test_prompts_are_a_function_of_the_generator() -> None:
    def run(seed: int) -> list[str]:
        return compose_prompts(
            ("cat",), np.zeros(20, dtype=np.int64), GenerateConfig(), ("a", "b"), derive_numpy_rng(seed)
        )

    assert run(1) == run(1)
    assert run(1) != run(2)
