# SPDX-License-Identifier: Apache-2.0
"""Names that tell a side, and what flips make of them."""

from __future__ import annotations

import pytest

from tools.datasets.sides import (
    choose_mirror_axes,
    describe_mirroring,
    list_mirrored_classes,
    list_sided,
    suggest_mirrored,
)
from tools.errors import ConfigValueError

LABELS = ["background", "right kidney", "liver", "left kidney"]
PAIR = {"right kidney": "left kidney"}


@pytest.mark.parametrize(
    "name", ["right kidney", "kidney_left", "LeftKidney", "Parotid_L", "hippocampus-R", "ctx-lh-insula", "Rt lung"]
)
def test_a_name_that_tells_a_side_is_found(name):
    assert list_sided(["background", name]) == [name]


@pytest.mark.parametrize("name", ["liver", "cleft", "bright spot", "cortex", "Rectum", "gallbladder"])
def test_a_name_without_a_side_is_not(name):
    assert list_sided(["background", name]) == []


def test_names_that_differ_in_the_side_alone_are_pairs():
    labels = ["background", "kidney_right", "kidney_left", "right lung", "LeftLung", "left atrium", "liver"]
    assert suggest_mirrored(labels) == {"kidney_right": "kidney_left", "right lung": "LeftLung"}


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("PIR", 2), ("ILA", 1)])
def test_structures_that_change_places_are_flipped_from_right_to_left_alone(orientation, axis):
    assert choose_mirror_axes(LABELS, PAIR, orientation) == [axis]


def test_without_a_word_sided_labels_are_not_flipped_and_others_along_all_axes():
    assert choose_mirror_axes(LABELS, None, "RAS") == []
    assert choose_mirror_axes(["background", "liver"], None, "RAS") == [0, 1, 2]


def test_labels_that_keep_their_names_are_flipped_along_all_axes():
    assert choose_mirror_axes(LABELS, {}, "RAS") == [0, 1, 2]


def test_classes_change_places_and_back():
    places = list_mirrored_classes(LABELS, PAIR)
    assert places == [0, 3, 2, 1]
    assert [places[place] for place in places] == [0, 1, 2, 3]
    assert list_mirrored_classes(LABELS, None) == [0, 1, 2, 3]


def test_a_name_that_is_none_of_the_labels_is_refused_with_the_nearest():
    with pytest.raises(ConfigValueError, match=r"left kidny.*did you mean left kidney"):
        list_mirrored_classes(LABELS, {"right kidney": "left kidny"})


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(ConfigValueError, match="liver twice"):
        list_mirrored_classes(LABELS, {"right kidney": "liver", "left kidney": "liver"})


@pytest.mark.parametrize(
    ("mirrored", "axes", "words"),
    [
        (PAIR, [0], "flips along axis 0: right kidney and left kidney change places"),
        ({}, [0, 1], "flips along axes 0, 1: right kidney, left kidney keep their names in mirror images"),
        (None, [0], "flips along axis 0: right kidney, left kidney keep their names in mirror images"),
        ({}, [], "no flips, as names tell sides: right kidney, left kidney"),
    ],
)
def test_what_flips_do_to_the_sides_is_said(mirrored, axes, words):
    assert describe_mirroring(LABELS, mirrored, axes) == words


def test_where_nothing_is_known_the_pairs_are_proposed():
    told = describe_mirroring(LABELS, None, [])
    assert told.startswith("no flips, as names tell sides: right kidney, left kidney; ")
    assert told.endswith("--mirrored \"{'right kidney': 'left kidney'}\"")
    assert describe_mirroring(["background", "liver"], None, [0, 1, 2]) == "flips along axes 0, 1, 2"
