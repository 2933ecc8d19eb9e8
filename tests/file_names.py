"""File names that are no UTF-8, as old archives have them."""

from __future__ import annotations

import sys

import pytest

BYTE_NAMES = sys.platform != "darwin"  # macOS takes UTF-8 names only
byte_names = pytest.mark.skipif(not BYTE_NAMES, reason="macOS takes UTF-8 file names only")
