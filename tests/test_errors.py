from __future__ import annotations

import pytest

from domainfusion import errors
from domainfusion.errors import DomainFusionError, UsageError, unknown_name


@pytest.mark.parametrize("name", ["UsageError", "DataError", "LDMError", "TrainingError", "FileError"])
def test_every_expected_failure_has_one_base(name: str) -> None:
    assert issubclass(getattr(errors, name), DomainFusionError)


def test_unknown_name_suggests_the_nearest_and_lists_the_known_in_order() -> None:
    error = unknown_name("domain", "pixle", ["ink", "flat", "pixel"])
    assert isinstance(error, UsageError)
    assert str(error) == "unknown domain 'pixle'; did you mean 'pixel'? Known: flat, ink, pixel"


def test_unknown_name_suggests_nothing_where_nothing_is_near() -> None:
    assert str(unknown_name("domain", "zzz", ["ink", "flat"])) == "unknown domain 'zzz'. Known: flat, ink"
