# SPDX-License-Identifier: Apache-2.0
"""The conditions under which this process serves, from the command that starts it to the application it starts.

uvicorn imports the application by its name and hands nothing on; an environment variable would hand the token on to the
processes that train.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.labelling.access import Access


@dataclass(frozen=True)
class Conditions:
    """Who may talk to the server, and whether scans may be links.

    Args:
        access: what a request must have.
        follow_links: whether scans and labels in the studies may be links to files elsewhere.
    """

    access: Access
    follow_links: bool = False


_current: list[Conditions] = []


def set_conditions(conditions: Conditions) -> None:
    """Let the application of this process serve under these conditions."""
    _current[:] = [conditions]


def get_conditions() -> Conditions:
    """Return the conditions.

    Raises:
        RuntimeError: if there are none: the application is not for a server that was started in another way.
    """
    if not _current:
        raise RuntimeError("start the server with `python -m tools label start`")
    return _current[0]
