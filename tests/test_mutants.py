# SPDX-License-Identifier: Apache-2.0
"""The faults of tests/mutants.py can be planted: each stands once in its file, and its room has tests."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, REPOSITORY


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.file)
def test_a_fault_stands_once_in_its_file_and_its_room_has_tests(mutant):
    assert (REPOSITORY / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert any((REPOSITORY / room).exists() for room in mutant.find_room())
