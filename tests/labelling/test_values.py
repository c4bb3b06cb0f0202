# SPDX-License-Identifier: Apache-2.0
"""A value of a request is of its kind, or told in a sentence."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tools.errors import RequestError
from tools.labelling import values
from tools.labelling.values import (
    Kind,
    choice,
    flag,
    name,
    note,
    number,
    one_or_more,
    optional,
    points,
    setting,
    tag,
    text,
)

LEADING_OUT = [
    "../x",
    "..",
    ".",
    "/x",
    "a/b",
    "a\\b",
    "a\0",
    "a\n",
    ".hidden",
    "",
    " ",
    "x" * 201,
    "é" * 101,
    "\ud800",
    7,
    None,
]


@pytest.mark.parametrize(
    "value", ["hippocampus_011", "Patient 1 (MR), 3 mm", "Größe", "写真", "a.b", "1.2.840.113619", "$x", "-"]
)
def test_names_of_files_are_names_in_any_script(value: str):
    assert name("image", value) == value


@pytest.mark.parametrize("value", LEADING_OUT)
def test_what_leads_elsewhere_is_no_name(value: Any):
    with pytest.raises(RequestError, match=r"image: found .*, wanted a name of at most 200 bytes without / and"):
        name("image", value)


@pytest.mark.parametrize("value", [*LEADING_OUT, "a b", "a.b", "é", "x" * 65])
def test_tags_are_folders_of_plain_names(value: Any):
    assert [tag("tag", known) for known in ("final", "original", "version_1", "1-2")]
    with pytest.raises(RequestError, match="tag: found "):
        tag("tag", value)


CODE = "$__import__('os').getcwd()"


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (flag, [True, False], [0, 1, "true", None, CODE, []]),
        (number(0, 2), [0, 1.5, 2], [-1, 3, "1", True, None, math.nan, math.inf, CODE, 10**400]),
        (number(1, 9, whole=True), [1, 9], [1.0, 1.5, 0, "1", True]),
        (choice("run", ""), ["run", ""], ["initialize", CODE, None, 0, []]),
        (choice(0, 1), [0, 1], [True, False, 0.0]),
        (optional(flag), [None, True], ["", 0]),
        (one_or_more(choice("a", "b")), ["a", ["b", "a"]], ["c", [], ["c"], [["a"]], ["a"] * 101, {"a": 1}]),
        (text, ["anything: $x ../y", ""], ["x" * 1001, "\ud800", 1, None]),
        (
            points,
            [[], [[1, 2, 3], [4.5, 0, 2]], [0, 1, 2, 3, 4, 5]],
            ["x", [["x"]], [[1, 2, 3, 4, 5]], [[math.nan]], [[[1]]], [1] * 10_001],
        ),
    ],
)
def test_kinds_take_what_they_know_and_nothing_else(kind: Kind, right: list[Any], wrong: list[Any]):
    for value in right:
        assert kind("key", value) == value
    for value in wrong:
        with pytest.raises(RequestError, match="key: found "):
            kind("key", value)


@pytest.mark.parametrize(
    ("default", "right", "wrong"),
    [
        (False, [True], [CODE, 1, "false"]),
        (0.5, [0.25, 0, 1], [CODE, True, "0.5", math.inf]),
        (50, [1, 0.5], [CODE, None]),
        (["cpu", "GPU (1)"], ["cpu", ["cpu"], "GPU (1)"], ["cuda", CODE, ["cpu", CODE]]),
        ("", ["", "my run 1"], [CODE, "@network", "%file", "../x", "a/b", "http://x", ".x", "x" * 65, 1]),
        ("$kept", ["$kept"], [CODE]),
        (None, [None], ["x", CODE, 0]),
        ({"a": 1}, [{"a": 1}], [{"a": 2}, {}, CODE]),
    ],
)
def test_setting_stays_of_the_kind_of_its_default_and_is_never_an_expression(
    default: Any, right: list[Any], wrong: list[Any]
):
    for value in right:
        assert setting(default)("key", value) == value
    for value in wrong:
        with pytest.raises(RequestError, match="key: found "):
            setting(default)("key", value)


def test_note_holds_plain_values():
    content = {"label_info": [{"name": "a", "idx": 1}], "client_id": None, "comment": "$x ../y", "x": -1.5e3}
    assert note()("params", json.dumps(content)) == content


@pytest.mark.parametrize(
    "value",
    [
        '{"x": NaN}',
        '{"x": [-Infinity]}',
        '{"x": 1e999}',
        "[1]",
        "1",
        '"x"',
        "{",
        "[" * 100_000,
        json.dumps({"x": [[[[[[[[1]]]]]]]]}),
        json.dumps({"x": "y" * (64 << 10)}),
        json.dumps({"path": "x"}),
        '{"x": ' + "9" * 5000 + "}",
        '{"x": "\\ud800"}',
        '{"\\udfff": 1}',
        None,
    ],
)
def test_note_that_would_break_something_is_refused(value: Any):
    with pytest.raises(RequestError, match="params: found "):
        note({"path", "strategy"})("params", value)


def test_settings_have_known_keys_and_each_counts_once():
    kinds = {"overlap": number(0, 1), "mirroring": flag}
    assert values.read_settings("params", '{"overlap": 7, "overlap": 0.5}', kinds) == {"overlap": 0.5}
    assert values.read_settings("params", {"mirroring": True}, kinds) == {"mirroring": True}
    assert values.write_object({"overlap": 0.5}) == '{"overlap": 0.5}'
    with pytest.raises(
        RequestError, match=r"params: found the key 'image', wanted some of mirroring, overlap; leave it"
    ):
        values.read_settings("params", '{"image": "/etc/passwd"}', kinds)
    with pytest.raises(RequestError, match=r"params, mirroring: found 1, wanted true or false"):
        values.read_settings("params", '{"mirroring": 1}', kinds)


def test_message_stays_short():
    with pytest.raises(RequestError) as error:
        name("image", "x" * 100_000)
    assert len(str(error.value)) < 300
