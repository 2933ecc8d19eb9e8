from __future__ import annotations

import inspect

import pytest

from domainfusion.errors import UsageError
from domainfusion.registry import ALGORITHMS, BACKBONES, DATASETS, LDMS, Entry, Registry


@pytest.fixture
def shapes() -> Registry:
    return Registry("shape", [Entry("square", "four sides", "Euclid"), Entry("circle", "none", "Euclid", "math:pi")])


def test_names_are_sorted_and_filtered(shapes: Registry) -> None:
    assert shapes.names() == ["circle", "square"]
    assert shapes.names("s*") == ["square"]
    assert shapes.names("x*") == []


def test_duplicates_are_refused_and_change_nothing(shapes: Registry) -> None:
    with pytest.raises(ValueError, match="shape 'circle' is registered already"):
        shapes.register(Entry("circle", "another", ""))
    assert shapes.get("circle").summary == "none"


def test_an_unknown_name_is_answered_with_the_nearest(shapes: Registry) -> None:
    with pytest.raises(UsageError, match="unknown shape 'sqare'; did you mean 'square'"):
        shapes.get("sqare")
    with pytest.raises(UsageError, match="unknown shape"):
        shapes.load("triangle")


def test_load_imports_what_an_entry_points_to(shapes: Registry) -> None:
    import math

    assert shapes.load("circle") is math.pi


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm_can_be_loaded(name: str) -> None:
    from domainfusion.algorithms.base import Algorithm
    from domainfusion.algorithms.zero_shot import ZeroShot

    kind = ALGORITHMS.load(name)
    assert inspect.isclass(kind)
    assert issubclass(kind, (Algorithm, ZeroShot))


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_is_a_model_of_timm(name: str) -> None:
    import timm

    assert timm.is_model(name.split(".")[0])
    if "." in name:
        assert name in timm.list_models(name, pretrained=True)


@pytest.mark.parametrize("registry", [ALGORITHMS, BACKBONES, DATASETS, LDMS], ids=lambda registry: registry.kind)
def test_every_entry_says_what_it_is_in_one_line(registry: Registry) -> None:
    assert registry.names()
    for entry in registry.entries.values():
        assert entry.summary
        assert entry.source
        assert "\n" not in entry.summary + entry.source
