# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigComponent
from monai.data import CacheDataset
from monai.transforms import Compose, Transform
from torch.utils.data import DataLoader, Dataset

from tools import errors
from tools.errors import (
    CheckpointError,
    ConfigValueError,
    MemoryLimitError,
    ToolsError,
    UnreadableScanError,
    find_cause,
)

REPOSITORY = Path(__file__).resolve().parents[1]
SENTENCE = "a.nii.gz: found a folder, wanted a file; give a file."


def fail_in_process(body: str) -> subprocess.CompletedProcess[str]:
    """Run `body` in a new process that reports plainly; both of its streams are in `stdout`, as on a screen."""
    code = f"""
from tools.errors import UnreadableScanError, report_plainly
report_plainly()
report_plainly()
error = UnreadableScanError("a.nii.gz", "a folder", "a file", "give a file")
{textwrap.dedent(body)}
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_sentence_has_subject_found_wanted_and_remedy():
    error = CheckpointError(Path("model.pt"), "3 tensors", "5 tensors", "download it again")
    assert str(error) == "model.pt: found 3 tensors, wanted 5 tensors; download it again."
    assert (error.subject, error.found, error.wanted, error.remedy) == (
        "model.pt",
        "3 tensors",
        "5 tensors",
        "download it again",
    )


def test_every_class_has_the_same_base_and_says_what_it_is_for():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(kind, ToolsError) and kind.__doc__ for kind in kinds)


def test_an_error_survives_the_way_from_another_process():
    error = UnreadableScanError("a.nii.gz", "a folder", "a file", "give a file")
    copy = deepcopy(error)  # by the same protocol as pickle
    assert type(copy) is UnreadableScanError
    assert str(copy) == str(error) == SENTENCE
    assert copy.remedy == "give a file"


class Broken(Dataset):
    """A data set whose only item raises what it was given, behind MONAI's wrapper around a transform."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise RuntimeError("applying transform") from self.error


@pytest.mark.costs(processes=2)
def test_the_cause_is_found_in_a_worker_of_a_data_loader():
    cause = UnreadableScanError("a: b.nii.gz", "a cut off file, 3 bytes", "a file; whole", "copy it again")
    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        list(DataLoader(Broken(cause), num_workers=1))
    found = find_cause(raised.value)
    assert type(found) is UnreadableScanError
    assert str(found) == str(cause)
    with pytest.raises(RuntimeError) as raised:
        list(DataLoader(Broken(ValueError("a: found b, wanted c; d.")), num_workers=1))
    assert find_cause(raised.value) is None


def test_the_cause_is_found_behind_wrappers():
    cause, wrapper, outer = ToolsError("a", "b", "c", "d"), RuntimeError("applying transform"), RuntimeError("failed")
    wrapper.__cause__, outer.__context__ = cause, wrapper
    assert find_cause(outer) is find_cause(cause) is cause
    assert find_cause(ValueError("x")) is None


def test_an_argument_that_a_component_lacks_is_told_plainly():
    component = ConfigComponent({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2, "feature_size": 4})
    with pytest.raises(RuntimeError) as caught:
        component.instantiate()
    cause = find_cause(caught.value)
    assert isinstance(cause, ConfigValueError)
    assert str(cause).startswith("torch.nn.Linear: found the argument feature_size, wanted arguments that it has; ")
    assert "#feature_size" in str(cause)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 8.00 GiB"
            ),
            "no room for a further 20.50 GiB beside what the 8.00 GiB hold already",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes. Error code 12"),
            "no room for a further 800 bytes",
        ),
        (MemoryError(), "no room left"),
    ],
)
def test_an_allocation_that_failed_is_told_plainly(error, found):
    wrapper = RuntimeError("failed")
    wrapper.__cause__ = error
    cause = find_cause(wrapper)
    assert isinstance(cause, MemoryLimitError)
    assert cause.found == found
    assert "--batch_size" in cause.remedy


def test_a_type_error_inside_a_component_stays_a_defect():
    component = ConfigComponent({"_target_": "torch.nn.Linear", "in_features": "two", "out_features": 2})
    with pytest.raises(RuntimeError) as caught:
        component.instantiate()
    assert find_cause(caught.value) is None


def test_a_cause_that_was_cut_off_is_not_found():
    def fail() -> None:
        try:
            raise ToolsError("a", "b", "c", "d")
        except ToolsError:
            raise ValueError("x") from None

    with pytest.raises(ValueError, match="x") as caught:
        fail()
    assert find_cause(caught.value) is None


def test_a_circle_of_causes_ends():
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert find_cause(first) is None


@pytest.mark.costs(processes=1)
def test_a_wrapped_error_ends_the_program_with_one_sentence():
    result = fail_in_process(
        """
        try:
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("applying transform") from inner
        except Exception as inner:
            raise RuntimeError("Failed to instantiate component") from inner
        """
    )
    assert result.returncode == 1
    assert result.stdout == f"\nError: {SENTENCE}\n"


@pytest.mark.costs(processes=1)
def test_output_comes_before_the_sentence():
    result = fail_in_process("print('working'); raise error")
    assert (result.returncode, result.stdout) == (1, f"working\n\nError: {SENTENCE}\n")


@pytest.mark.costs(processes=1)
def test_the_sentence_is_the_last_line_below_an_open_progress_bar():
    result = fail_in_process("from tqdm.auto import tqdm; bar = tqdm(total=3); bar.update(); raise error")
    assert "1/3" in result.stdout
    assert result.stdout.endswith(f"\nError: {SENTENCE}\n")


@pytest.mark.costs(processes=1)
def test_the_sentence_goes_to_the_error_stream():
    result = fail_in_process("import sys; sys.stderr = open('/dev/null', 'w'); raise error")
    assert (result.returncode, result.stdout) == (1, "")


@pytest.mark.costs(processes=1)
def test_another_exception_keeps_its_traceback():
    result = fail_in_process("raise KeyError('a defect')")
    assert result.returncode == 1
    assert "Traceback" in result.stdout
    assert result.stdout.endswith("KeyError: 'a defect'\n")
    assert "Error: a.nii.gz" not in result.stdout


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. "),
            "a process that loads data and is killed by signal: Killed, wanted room for it; give --num_workers 0, "
            "give --cache_rate 0",
        ),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "exited unexpectedly"),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. "
                "It is possible that dataloader's workers are out of shared memory."
            ),
            "/dev/shm: found no room left, wanted room for the volumes that workers hand over; give --num_workers 0",
        ),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "/dev/shm: found no room"),
        (OSError(24, "Too many open files"), "ulimit -n 4096"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n 4096"),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), "ulimit -n 4096"),
    ],
    ids=["killed", "exited", "bus error", "full", "open files", "ancdata", "shared objects"],
)
def test_what_ends_a_loader_is_told_with_a_remedy_that_helps(error, told):
    wrapped = RuntimeError("Failed to evaluate")
    wrapped.__cause__ = error
    assert told in str(find_cause(wrapped))


def test_a_cache_that_memory_does_not_hold_names_what_makes_it_smaller():
    class Hungry(Transform):
        def __call__(self, data):
            raise MemoryError

    with pytest.raises(RuntimeError) as caught:
        CacheDataset([{"image": 1}], Compose([Hungry()]), progress=False, num_workers=1)
    told = str(find_cause(caught.value))
    assert "wanted what the prepared volumes need; give --cache_rate 0" in told
    assert "configs/disk_cache.yaml" in told
    assert "--pixdim" in told


def test_other_errors_of_files_keep_their_traceback():
    assert find_cause(OSError(28, "No space left on device")) is None
    assert find_cause(RuntimeError("a defect")) is None
