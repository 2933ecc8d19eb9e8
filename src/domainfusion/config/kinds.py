"""The kinds of values that options take, and what is refused of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrAuto = Annotated[int, Field(ge=0, le=10**9)]  # 0: chosen for the device
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the range goes from low to high, not from {value[0]:g} to {value[1]:g}")
    return value


def _template_of(*names: str) -> AfterValidator:
    """A validator of templates that may hold `names` in braces, and nothing else there."""

    def check(value: str) -> str:
        try:
            value.format(**dict.fromkeys(names, "cat"))
        except (KeyError, IndexError, ValueError) as error:
            known = " and ".join(f"{{{name}}}" for name in names)
            raise ValueError(f"a template may hold {known} only ({type(error).__name__}: {error})") from None
        return value

    return AfterValidator(check)


def _domain_words(value: str) -> str:
    if not value.partition("=")[0] or "=" not in value:
        raise ValueError("words for a domain are given as DOMAIN=WORDS")
    return value


Confidence = Annotated[float, Field(ge=0.02, le=1)]
Strength = Annotated[float, Field(gt=0, le=1)]
StrengthRange = Annotated[tuple[Strength, Strength], AfterValidator(_ascending)]
Interval = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
Template = Annotated[str, _template_of("label", "style")]
DomainTemplate = Annotated[str, _template_of("label", "domain")]
DomainWords = Annotated[str, AfterValidator(_domain_words)]
Corruption = Literal["contrast", "blur", "pepper", "mask"]
Residual = Literal["plain", "guided", "contrast"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
