"""The corpus: read from folders and arrays, augmented, captioned, divided."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainfusion.diffusion.corpus import BACKGROUNDS, FOREGROUNDS, Corpus, augment, compose_caption, load_corpus
from domainfusion.diffusion.pretraining import sample_prompts
from domainfusion.errors import DataError
from small_corpus import SIZE, make_corpus, square_image


def test_augment_keeps_range_shape_and_input() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    images[:20] = images[:20, :, :, :1]  # monochrome
    kept = images.copy()
    batch, colours = augment(images, np.random.default_rng(1), recolour=0.5, hue=0.5)
    assert batch.shape == (40, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert batch.min() >= -1
    assert batch.max() <= 1
    assert np.array_equal(images, kept)
    assert any(colours[:20])
    assert not all(colours[:20])
    assert not any(colours[20:])
    again, _ = augment(images, np.random.default_rng(1), recolour=0.5, hue=0.5)
    assert torch.equal(batch, again)


def test_augment_mirrors_half_and_moves_a_little() -> None:
    images = np.zeros((600, 32, 32, 3), dtype=np.uint8)
    images[:, :, 16:] = 255
    batch, _ = augment(images, np.random.default_rng(0), recolour=0.0, hue=0.0)
    left, right = batch[:, :, :, :8].mean((1, 2, 3)), batch[:, :, :, 24:].mean((1, 2, 3))
    assert torch.allclose(left.abs(), torch.ones(600))  # the border has moved by less than 8 pixels
    assert torch.equal(left, -right)
    assert (left > 0).float().mean() == pytest.approx(0.5, abs=0.08)  # 4 standard deviations


def test_augment_zooms_between_its_bounds() -> None:
    images = np.full((300, 64, 64, 3), 255, dtype=np.uint8)
    images[:, 22:42, 22:42] = 0  # side 20
    batch, _ = augment(images, np.random.default_rng(0), recolour=0.0, hue=0.0)
    side = ((1 - batch[:, 0]) / 2).sum((1, 2)).sqrt()
    assert side.min() > 20 * 0.8 * 0.98
    assert side.max() < 20 * 1.15 * 1.02
    assert side.max() - side.min() > 4


def test_recoloured_drawings_have_the_colours_that_their_words_say() -> None:
    images = np.zeros((60, 8, 8, 3), dtype=np.uint8)
    images[30:] = 255  # ink only, then paper only
    batch, colours = augment(images, np.random.default_rng(0), recolour=1.0, hue=1.0)
    grounds = set()
    for i, words in enumerate(colours):
        front, back = words.split(" on ")
        expected = torch.tensor(FOREGROUNDS[front] if i < 30 else BACKGROUNDS[back]) / 127.5 - 1
        torch.testing.assert_close(batch[i], expected.view(3, 1, 1).expand(3, 8, 8), rtol=0, atol=1e-5)
        grounds.add(back)
    assert "white" in grounds
    assert len(grounds) > 2


def test_hue_augmentation_permutes_channels() -> None:
    images = np.tile(np.array([200, 100, 0], dtype=np.uint8), (40, 8, 8, 1))
    batch, _ = augment(images, np.random.default_rng(0), recolour=1.0, hue=1.0)
    pixels = ((batch[:, :, 4, 4] + 1) * 127.5).round().int()
    assert all(sorted(pixel.tolist()) == [0, 100, 200] for pixel in pixels)
    assert len({tuple(pixel.tolist()) for pixel in pixels}) == 6
    unchanged, _ = augment(images, np.random.default_rng(0), recolour=1.0, hue=0.0)
    assert torch.allclose((unchanged[:, :, 4, 4] + 1) * 127.5, torch.tensor([200.0, 100.0, 0.0]), atol=1e-3)


def test_captions_drop_their_parts_at_the_stated_rates() -> None:
    corpus = make_corpus(np.zeros((1, 4, 4, 3), dtype=np.uint8))
    rng = np.random.default_rng(0)
    captions = [compose_caption(corpus, 0, "red on white", rng, 0.1).split(", ") for _ in range(8000)]
    order = ["text", "category", "style", "red on white"]
    for parts in captions:
        assert parts == [""] or parts == [part for part in order if part in parts]
    for part, rate in zip(order, (0.5, 0.85, 0.85, 0.7), strict=True):
        share = sum(part in parts for parts in captions) / 8000
        assert share == pytest.approx(0.9 * rate, abs=4 * math.sqrt(0.25 / 8000))
    empty = sum(parts == [""] for parts in captions) / 8000
    assert empty == pytest.approx(0.1 + 0.9 * 0.5 * 0.15 * 0.15 * 0.3, abs=4 * math.sqrt(0.1 / 8000))


def test_captions_always_or_never_empty() -> None:
    corpus = make_corpus(np.zeros((1, 4, 4, 3), dtype=np.uint8), category="", style="")
    rng = np.random.default_rng(0)
    assert {compose_caption(corpus, 0, "", rng, 1.0) for _ in range(50)} == {""}
    assert {compose_caption(corpus, 0, "", rng, 0.0) for _ in range(50)} == {"text"}


def test_held_out_images_are_few_fixed_and_never_trained_on() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 3), dtype=np.uint8)
    images[2000:2100] = images[:100]  # copies
    corpus = make_corpus(images)
    held = corpus.held_out
    assert 0.01 < held.mean() < 0.03
    assert np.array_equal(held[2000:2100], held[:100])
    training, validation = corpus.select(~held), corpus.select(held)
    assert len(training) + len(validation) == 4000
    assert not {i.tobytes() for i in training.images} & {i.tobytes() for i in validation.images}
    assert np.array_equal(corpus.select(np.arange(4000) % 2 == 0).held_out, held[::2])  # a matter of the image alone


@pytest.mark.parametrize("count", [2, 5, 24])
def test_small_corpora_hold_something_out_and_keep_something(count: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    held = make_corpus(images).held_out
    assert 0 < held.sum() < count


def test_select_keeps_rows_together() -> None:
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    corpus = Corpus(images, list("abcde"), list("ABCDE"), list("vwxyz"), np.arange(5.0))
    chosen = corpus.select(np.array([False, True, False, False, True]))
    assert np.array_equal(chosen.images, images[[1, 4]])
    assert (chosen.text, chosen.category, chosen.style) == (["b", "e"], ["B", "E"], ["w", "z"])
    assert chosen.weight.tolist() == [1.0, 4.0]


def test_versatile_styles_know_half_of_the_categories() -> None:
    images = np.zeros((8, 2, 2, 3), dtype=np.uint8)
    category = ["cat", "dog", "", "cat", "cat", "cow", "hen", ""]
    style = ["oil", "oil", "wax", "wax", "pen", "pen", "pen", "ink"]
    corpus = Corpus(images, ["x"] * 8, category, style, np.ones(8))
    assert corpus.versatile_styles == ["oil", "pen"]  # two and three of four; wax knows one, ink none
    assert Corpus(images, ["x"] * 8, [""] * 8, style, np.ones(8)).versatile_styles == ["ink", "oil", "pen", "wax"]


def test_load_corpus_reads_folder_and_npz_alike(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = load_corpus(corpus_folder, SIZE)
    assert np.array_equal(corpus.images[7], square_image(7))
    assert (corpus.text[7], corpus.category[7], corpus.style[7], corpus.weight[7]) == (
        "grey square",
        "shape",
        "ink",
        2.0,
    )
    assert corpus.styles == ["flat", "ink"]
    np.savez(tmp_path / "c.npz", images=corpus.images, text=np.array(corpus.text))
    packed = load_corpus(tmp_path / "c.npz", SIZE)
    assert np.array_equal(packed.images, corpus.images)
    assert packed.text == corpus.text
    assert (set(packed.category), set(packed.style), set(packed.weight)) == ({""}, {""}, {1.0})
    assert load_corpus(tmp_path / "c.npz", 16).images.shape == (24, 16, 16, 3)


def test_transparent_images_are_laid_on_white(corpus_folder: Path) -> None:
    rgba = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    rgba[:16, :, 3] = 255
    Image.fromarray(rgba).save(corpus_folder / "00.png")
    image = load_corpus(corpus_folder, SIZE).images[0]
    assert (image[:16] == 0).all()
    assert (image[16:] == 255).all()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing", "bad chunk"])
def test_a_corrupt_image_is_named(corpus_folder: Path, damage: str) -> None:
    path = corpus_folder / "11.png"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "bad chunk":
        start = whole.index(b"IDAT")
        path.write_bytes(whole[:start] + b"\x00\xff\x01\x02" + whole[start + 4 :])
    else:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"11\.png cannot be read as an image"):
        load_corpus(corpus_folder, SIZE)


@pytest.mark.parametrize("weight", ["", "many", "-1", "nan"])
def test_bad_weights_are_refused(corpus_folder: Path, weight: str) -> None:
    path = corpus_folder / "metadata.csv"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + f",{weight}"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="weight"):
        load_corpus(corpus_folder, SIZE)


def test_what_is_no_corpus_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no corpus"):
        load_corpus(tmp_path, SIZE)
    (corpus_folder / "metadata.csv").write_text("name,text\n0.png,x\n")
    with pytest.raises(DataError, match="file_name and text"):
        load_corpus(corpus_folder, SIZE)
    (corpus_folder / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(DataError, match="file_name and text"):
        load_corpus(corpus_folder, SIZE)
    np.savez(tmp_path / "c.npz", text=np.array(["x"]))
    with pytest.raises(DataError, match="'images' and 'text'"):
        load_corpus(tmp_path / "c.npz", SIZE)


def test_sample_prompts_are_the_most_frequent_categories() -> None:
    corpus = Corpus(
        np.zeros((5, 2, 2, 3), np.uint8), list("abcde"), ["dog", "cat", "dog", "", "ant"], ["ink", "", "oil", "", ""],
        np.ones(5),
    )  # fmt: skip
    assert sample_prompts(corpus) == ["dog, ink", "ant, oil", "cat, ink"]
    bare = Corpus(np.zeros((2, 2, 2, 3), np.uint8), ["a", "b"], ["", ""], ["", ""], np.ones(2))
    assert sample_prompts(bare, count=1) == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "images are float32 of the shape"),
        ({"text": np.array(["a"] * 3)}, "4 images and 3 of text"),
        ({"style": np.array(["a"] * 5)}, "4 images and 5 of style"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    arrays = {"images": np.zeros((4, 8, 8, 3), np.uint8), "text": np.array(["a"] * 4)} | changes
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_corpus(tmp_path / "c.npz", 8)


def test_a_text_with_an_unquoted_comma_is_named(corpus_folder: Path) -> None:
    table = corpus_folder / "metadata.csv"
    lines = table.read_text().splitlines()
    lines[2] += ", sitting"
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"metadata.csv, line 3: more values than the heading has columns"):
        load_corpus(corpus_folder, 8)
