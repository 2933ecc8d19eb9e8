"""The embedded LDM was trained on no image of the embedded benchmark."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from domainfusion.data.pictograms import load_pictograms

HASHES = Path(__file__).with_name("embedded_corpus.npy")
CORPUS = Path(__file__).parents[3] / "shared" / "data" / "corpus"


def hash_image(image):
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()[:8], "little")


def test_no_benchmark_image_was_trained_on():
    trained = set(np.load(HASHES).tolist())
    benchmark = load_pictograms().images
    assert len(trained) > 30_000
    shared = [i for i, image in enumerate(benchmark) if hash_image(image) in trained]
    mirrored = [i for i, image in enumerate(benchmark) if hash_image(image[:, ::-1]) in trained]
    assert (shared, mirrored) == ([], [])


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the training corpus is not at hand (../shared/data/corpus)")
def test_the_hashes_are_those_of_the_corpus():
    trained = set(np.load(HASHES).tolist())
    for path in sorted(CORPUS.glob("*.npz"))[:4]:
        with np.load(path) as file:
            sample = file["images"][:: max(1, len(file["images"]) // 50)]
        # Flags are left out of the training corpus, so not every image of an emoji set has its hash in the list.
        found = np.mean([hash_image(image) in trained for image in sample])
        assert found > 0.7, path.name
