# SPDX-License-Identifier: Apache-2.0
"""What a test costs: counted against a budget in every run, and measured in seconds of the processor on request.

    pytest --costs costs.jsonl && python tests/costs.py costs.jsonl  # the 60 dearest tests and all files

Counts do not depend on the machine, as seconds do. A test may start no Python and no fork, train twice, export nothing
and leave two files above 10 MB, unless its marker allows more: `@pytest.mark.costs(processes=2, trainings=3)`. What
fixtures do is counted nowhere: those that cost something are made once. Nor is what tests/contract does, whose task it
is to start real programs.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BUDGET = {"processes": 0, "trainings": 2, "exports": 0, "large_files": 2}
LARGE_BYTES = 10_000_000
_counts: Counter[str] = Counter()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    started = event == "subprocess.Popen" and "python" in Path(str(arguments[0])).name  # git costs nothing
    if started or event in ("os.fork", "os.forkpty"):
        _counts["processes"] += 1


def _count_calls(owner: Any, name: str, kind: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        _counts[kind] += 1
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def install() -> None:
    """Count from now on."""
    from monai.engines.trainer import Trainer

    from tools.release import exports

    sys.addaudithook(_watch)
    _count_calls(Trainer, "run", "trainings")
    _count_calls(exports, "write_archive", "exports")


def measure_processor_seconds() -> float:
    """Return the seconds of this process and of its children that have ended, in user and in system mode."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def find_excess(item: pytest.Item) -> list[str]:
    """Return what a test has spent beyond its budget."""
    if "contract" in item.path.parts:
        return []
    marker = item.get_closest_marker("costs")
    allowed = BUDGET | (marker.kwargs if marker else {})
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()] if folder else []
    spent = {**_counts, "large_files": sum(path.stat().st_size > LARGE_BYTES for path in files)}
    return [f"{kind}={count}" for kind, count in spent.items() if count > allowed[kind]]


def watch_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that spends more than it may while it is called."""
    _counts.clear()
    result = yield
    if excess := find_excess(item):
        pytest.fail(f"costs more than it may: mark it with @pytest.mark.costs({', '.join(excess)}), or spend less")
    return result


def watch_protocol(item: pytest.Item) -> Iterator[None]:
    """Write down the seconds of a test with its fixtures."""
    before = measure_processor_seconds()
    try:
        return (yield)
    finally:
        path = item.config.getoption("--costs")
        if path:
            line = json.dumps([item.nodeid, round(measure_processor_seconds() - before, 3)])
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def main(path: str) -> None:
    """Print the sum, the files and the 60 dearest tests of a run with `--costs`."""
    rows = sorted(map(json.loads, Path(path).read_text(encoding="utf-8").splitlines()), key=lambda row: -row[1])
    files: defaultdict[str, list[float]] = defaultdict(list)
    for name, seconds in rows:
        files[name.partition("::")[0]].append(seconds)
    lines = [f"{sum(seconds for _, seconds in rows):8.1f} s  all {len(rows)} tests"]
    dearest = sorted(files.items(), key=lambda entry: -sum(entry[1]))
    lines += [f"{sum(seconds):8.1f} s  {len(seconds):4} tests  {name}" for name, seconds in dearest]
    lines += [f"{seconds:8.2f} s  {name}" for name, seconds in rows[:60]]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
