# SPDX-License-Identifier: Apache-2.0
"""Commands of users in forks of the process that tests: it has imported all that a start would import for seconds.

Each entry point is started once in a process of its own, too: `python -m tools` by test_commands.py and .ci/run, whose
demonstration starts `python -m monai.bundle run`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

FORK = multiprocessing.get_context("fork")


def run_fork(action: Callable[[], object], timeout_s: int = 240, expected: int | None = 0) -> int:
    """Run `action` in a fork and return its exit status, negative where a signal ended it.

    Args:
        action: what is run; what it raises is a traceback and status 1.
        timeout_s: after which the fork is killed.
        expected: the status that it must have, None for any.
    """
    process = FORK.Process(target=action)
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"a fork took more than {timeout_s} s")
    assert expected is None or process.exitcode == expected, f"a fork ended with status {process.exitcode}"
    return process.exitcode


def run_module(
    words: Sequence[object],
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: int = 240,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ...` in a fork, as `subprocess.run` would in a new process.

    Args:
        words: the command, beginning with Python and -m.
        cwd: its working directory.
        environment: variables that it has beside those of this process.
        timeout_s: after which it is killed.
    """
    python, option, module, *arguments = map(str, words)
    assert (python, option) == (sys.executable, "-m"), words

    def run() -> None:
        os.environ.update(environment or {})
        os.chdir(cwd or ".")
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return _capture(run, words, timeout_s)


def _capture(action: Callable[[], None], words: Sequence[object], timeout_s: int) -> subprocess.CompletedProcess[str]:
    """Run `action` in a fork whose streams are files, and end it as Python ends a program."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:

        def run() -> None:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            logging.root.handlers.clear()  # those of pytest
            status: object = 0
            try:
                action()
            except SystemExit as end:
                status = end.code
            except BaseException as error:
                status = 1
                sys.excepthook(type(error), error, error.__traceback__)
            sys.stdout.flush()
            sys.stderr.flush()
            sys.exit(status)  # type: ignore[arg-type]

        status = run_fork(run, timeout_s, expected=None)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(list(map(str, words)), status, output.read(), errors.read())


def run_code(code: str, *words: str, timeout_s: int = 240) -> subprocess.CompletedProcess[str]:
    """Run a program in a fork, as `python -c CODE WORD ...` would."""

    def run() -> None:
        sys.argv = ["-c", *words]
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})

    return _capture(run, [sys.executable, "-c", code, *words], timeout_s)


def run_as_library(
    command: Sequence[str],
    env: Mapping[str, str],
    stdout: IO[bytes] | None,
    stderr: int | None,
    check: bool,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Stand for the `subprocess.run` of `tools.bundles.run_bundle`."""
    assert not check
    assert (stdout is None) == (stderr is None)
    done = run_module(command, cwd=cwd, environment=env)
    if stdout is not None:
        stdout.write((done.stdout + done.stderr).encode())
    else:
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
    return done


def explain(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command wrote, for a test that fails."""
    return f"{' '.join(map(str, done.args))}\n{done.stdout}\n{done.stderr}"
