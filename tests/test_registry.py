from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from domainfusion.errors import UsageError
from domainfusion.registry import ALGORITHMS, BACKBONES, DATASETS, LDMS, TRACKERS, Entry, Registry, register_algorithm


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


@pytest.mark.parametrize(
    "registry", [ALGORITHMS, BACKBONES, DATASETS, LDMS, TRACKERS], ids=lambda registry: registry.kind
)
def test_every_entry_says_what_it_is_in_one_line(registry: Registry) -> None:
    assert registry.names()
    for entry in registry.entries.values():
        assert entry.summary
        assert entry.source
        assert "\n" not in entry.summary + entry.source


# Classes of the user's own


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with an algorithm `Mine`, a number, and a module beside it that lacks another."""
    (tmp_path / "own_shapes.py").write_text(
        'from domainfusion.algorithms.erm import ERM\n\n\nclass Mine(ERM):\n    "An own one."\n\n\nNUMBER = 3\n'
    )
    (tmp_path / "own_broken.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_shapes"


def test_a_class_is_found_by_its_import_path(module: str) -> None:
    from domainfusion.algorithms.erm import ERM

    kind = ALGORITHMS.load(f"{module}:Mine")
    assert issubclass(kind, ERM)
    assert kind.__name__ == "Mine"
    assert f"{module}:Mine" not in ALGORITHMS.names()  # named, not registered


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_shapes:Yours", "the module own_shapes has no Yours"),
        ("no_such_module_here:Mine", "there is no module no_such_module_here; is its folder on PYTHONPATH?"),
        ("own_shapes.deeper:Mine", "there is no module own_shapes.deeper; is its folder on PYTHONPATH?"),
        ("own_shapes:Mine.deeper", "unknown algorithm 'own_shapes:Mine.deeper'"),
        ("../own:Mine", "unknown algorithm"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused(module: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        ALGORITHMS.load(name)


def test_what_a_users_module_lacks_is_its_own_affair(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        ALGORITHMS.load("own_broken:Mine")


def test_only_subclasses_are_algorithms(module: str) -> None:
    from domainfusion.experiments.runs import algorithm_class

    assert algorithm_class(f"{module}:Mine").__name__ == "Mine"
    for name in (f"{module}:NUMBER", "collections:OrderedDict"):
        with pytest.raises(UsageError, match=f"--algorithm {name} is no subclass of domainfusion.Algorithm"):
            algorithm_class(name)


def test_lists_without_own_classes_take_no_import_path(shapes: Registry) -> None:
    with pytest.raises(UsageError, match="unknown shape 'math:pi'"):
        shapes.load("math:pi")


def test_a_decorated_class_is_known_and_can_be_made_again() -> None:
    def make() -> type:
        @register_algorithm("own_kind", source="a paper")
        class Own:
            """What it does.

            And more.
            """

        return Own

    try:
        first = make()
        assert ALGORITHMS.load("own_kind") is first
        second = make()  # the cell of a notebook run again
        assert ALGORITHMS.load("own_kind") is second
        entry = ALGORITHMS.get("own_kind")
        assert (entry.summary, entry.source) == ("What it does.", "a paper")
        with pytest.raises(ValueError, match="'own_kind' is registered already"):
            ALGORITHMS.add("own_kind", int)
        with pytest.raises(ValueError, match="'erm' is registered already"):
            ALGORITHMS.add("erm", int)
        assert ALGORITHMS.load("own_kind") is second
    finally:
        ALGORITHMS.remove("own_kind")
    with pytest.raises(UsageError, match="unknown algorithm 'own_kind'"):
        ALGORITHMS.get("own_kind")


def test_installed_packages_tell_theirs_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real installed package, as far as Python can tell: its metadata on the path."""
    metadata = tmp_path / "own_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[some.shapes]\nround = math:tau\ncircle = math:e\nbad = math\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import math

    found = Registry("shape", [Entry("circle", "none", "Euclid", "math:pi")], group="some.shapes")
    assert found.load("circle") == math.pi  # built in: first, and without a look at the packages
    assert found.load("round") == math.tau
    assert found.names() == ["circle", "round"]
    assert found.get("round").source == "own-package"
