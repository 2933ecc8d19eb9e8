"""The tokenizer of an LDM's own vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from domainfusion.diffusion.text_encoder import build_text_encoder, fit_tokenizer
from small_corpus import TINY


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    captions = ["red square, flat", "green square, ink", "a noto color drawing"] * 5
    return fit_tokenizer(captions, tmp_path_factory.mktemp("tokenizer"), vocabulary=280, length=8)


@pytest.mark.parametrize("text", ["red square, flat", "GREEN Square", "zebra", "a-z_0 9!", "qx"])
def test_text_of_known_letters_comes_back(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]  # no letter is unknown
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert back.replace(" ", "") == text.lower().replace(" ", "")


def test_words_that_are_frequent_are_one_token(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("red square flat").input_ids) == 5
    assert len(tokenizer("zebra").input_ids) > 4


def test_reloaded_tokenizer_is_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    reloaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(reloaded) == len(tokenizer)
    assert reloaded.model_max_length == 8
    for text in ("red square, flat", "zebra!", "日本 🦓", ""):
        assert reloaded(text).input_ids == tokenizer(text).input_ids


def test_fitting_again_gives_the_same_tokenizer(tmp_path: Path) -> None:
    captions = ["red square, flat", "green circle, ink", "naïve – 日本 café"]
    for run in ("a", "b"):
        fit_tokenizer(captions, tmp_path / run, vocabulary=260, length=8)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_more_letters_than_vocabulary(tmp_path: Path) -> None:
    letters = "".join(chr(code) for code in range(0x21, 0x3000, 3) if chr(code).isprintable())
    fitted = fit_tokenizer([letters], tmp_path, vocabulary=256, length=8)
    assert fitted.eos_token_id not in fitted("aé").input_ids[1:-1]
    assert CLIPTokenizer.from_pretrained(tmp_path)("aé").input_ids == fitted("aé").input_ids


def test_captions_beyond_ascii_are_understood(tmp_path: Path) -> None:
    fitted = fit_tokenizer(["café", "日本"] * 9, tmp_path, vocabulary=256, length=20)
    for text in ("café", "日本"):
        ids = fitted(text).input_ids
        assert len(ids) == 3  # start, the word, end
        assert fitted.decode(ids, skip_special_tokens=True) == text


@given(text=st.text(max_size=40))
def test_any_text_has_tokens_that_the_encoder_knows(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 8)
    assert ids.min() >= 0
    assert ids.max() < len(tokenizer)


def test_encoder_takes_every_token(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer, TINY).eval()
    ids = torch.arange(len(tokenizer))
    padded = torch.cat([ids, ids[: -len(ids) % 8]]).view(-1, 8)
    with torch.no_grad():
        embeds = encoder(padded)[0]
    assert embeds.shape == (len(padded), 8, 32)
    assert embeds.isfinite().all()
