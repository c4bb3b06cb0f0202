# SPDX-License-Identifier: Apache-2.0
"""References of configs: every `@` leads to something, and none leads back to itself."""

from __future__ import annotations

from collections.abc import Iterator

from monai.bundle import ReferenceResolver

from tools.linting.bundle import Bundle
from tools.linting.configs import MergedConfig
from tools.linting.documents import SEPARATOR
from tools.linting.findings import Finding, show, suggest


def check_references(bundle: Bundle) -> Iterator[Finding]:
    """Yield references to what is not there, and circles."""
    for config in bundle.sets:
        for place, value in config.items.items():
            if isinstance(value, str):
                yield from _check_value(config, place, value)
        yield from _find_circles(config)


def _check_value(config: MergedConfig, place: str, value: str) -> Iterator[Finding]:
    for target in ReferenceResolver.match_refs_pattern(value):
        if target not in config.items:
            known = [name for name in config.items if name]
            name = target.replace(SEPARATOR, "#")
            remedy = suggest(target, known, f"define {name}").replace(SEPARATOR, "#")
            yield config.report(
                place,
                f"{show(value)}, but no key {name}".replace(SEPARATOR, "#"),
                f"a key of {config.title}",
                remedy,
            )
    if value[:1] == "@" and not ReferenceResolver.id_matcher.fullmatch(ReferenceResolver.normalize_id(value)):
        yield config.report(
            place, f"the text {show(value)}", "a reference or a $ expression", "start it with $, or remove the @"
        )


def _find_circles(config: MergedConfig) -> Iterator[Finding]:
    done: set[str] = set()

    def visit(place: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if place in path:
            return (*path[path.index(place) :], place)
        if place in done or place not in config.items:
            return None
        for target in ReferenceResolver.find_refs_in_config(config.items[place], place):
            if circle := visit(target, (*path, place)):
                return circle
        done.add(place)
        return None

    reported: set[frozenset[str]] = set()
    for place in list(config.items):
        # the whole config and plain containers are not resolved as one
        if not place or place in done:
            continue
        try:
            circle = visit(place, ())
        except RecursionError:
            circle = None
        if circle and frozenset(circle) not in reported:
            reported.add(frozenset(circle))
            done.update(circle)
            spelled = " -> ".join(circle).replace(SEPARATOR, "#")
            yield config.report(circle[0], f"the circle {spelled}", "references that end", "replace one by a value")
