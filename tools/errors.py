# SPDX-License-Identifier: Apache-2.0
"""Errors for people: one sentence with the file, the value found, the value wanted and the remedy."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from types import TracebackType

_CACHE_REMEDY = (
    "give --cache_rate 0 (nothing is kept), configs/disk_cache.yaml as a further config file where the bundle has it, "
    "or a coarser --pixdim"
)


class ToolsError(Exception):
    """Base class of every error that bad input can cause; its text is the whole message for the user.

    Args:
        subject: the file, folder, key or value that is wrong.
        found: what was found there.
        wanted: what is needed instead.
        remedy: what the user can do about it, as an imperative.
    """

    def __init__(self, subject: object, found: str, wanted: str, remedy: str) -> None:
        self.subject, self.found, self.wanted, self.remedy = str(subject), found, wanted, remedy
        super().__init__(self.subject, found, wanted, remedy)  # the arguments, so that it can be pickled

    def __str__(self) -> str:
        return f"{self.subject}: found {self.found}, wanted {self.wanted}; {self.remedy}."


class MissingFileError(ToolsError):
    """A file or folder that the run needs does not exist."""


class DatasetError(ToolsError):
    """Several cases of a data set are bad; the first is told, the others are in the log."""


class EmptyDatasetError(ToolsError):
    """A folder or list holds no scan that could be used."""


class DatalistError(ToolsError):
    """A dataset.json or a list of scans cannot be understood."""


class UnreadableScanError(ToolsError):
    """A file exists but is no readable NIfTI volume of the wanted kind."""


class LabelValueError(ToolsError):
    """A label holds values that the data set does not define."""


class GeometryMismatchError(ToolsError):
    """An image and its label do not lie on the same grid."""


class UnknownOverrideError(ToolsError):
    """An override on the command line names a key that the config does not have."""


class CheckpointError(ToolsError):
    """A checkpoint cannot be read, or belongs to another network."""


class DownloadError(ToolsError):
    """A file could not be downloaded, or what arrived is not the file that was wanted."""


class ConfigValueError(ToolsError):
    """A config value is outside what the code can work with."""


class DivergedTrainingError(ToolsError):
    """The loss is no longer a finite number."""


class FailedScansError(ToolsError):
    """Some scans of a folder run could not be segmented; the others are done."""


class BundleError(ToolsError):
    """A bundle or its zip file lacks what a program needs of it, or holds what it must not."""


class MemoryLimitError(ToolsError):
    """A run needs more memory than there is."""


class MissingPackageError(ToolsError):
    """A Python package that a command needs is not installed."""


class RequestError(ToolsError):
    """A request to a server asks for what it does not do, or comes from whom it does not serve."""


@contextlib.contextmanager
def spell_option(key: str, typed: str) -> Iterator[None]:
    """Let errors name what was typed in place of the config key that it stands for.

    Args:
        key: as `--dataset_dir`.
        typed: as `--input`.
    """
    try:
        yield
    except ToolsError as error:
        words = (word.replace(key, typed) for word in (error.subject, error.found, error.wanted, error.remedy))
        raise type(error)(*words) from None


def find_cause(error: BaseException) -> ToolsError | None:
    """Return the `ToolsError` behind `error`, looking through the wrappers MONAI and ignite put around it.

    An argument in a config that its component does not have is told as a `ConfigValueError`, too, an allocation that
    failed as a `MemoryLimitError`. Of an error in a data loader's worker torch hands over the text of the traceback
    alone, as a `RuntimeError`; the error is read from it.
    """
    for link in _iterate_chain(error):
        if isinstance(link, ToolsError):
            return link
        if (
            explained := _explain_argument(link)
            or _read_worker(link)
            or _explain_memory(link, error)
            or _explain_loader(link)
        ):
            return explained
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` is an allocation that failed: of a GPU, of PyTorch's tensors on a CPU, or of Python."""
    # the class of torch by its name: importing it takes seconds, which many commands can do without
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def report_plainly() -> None:
    """From now on, end the program on a `ToolsError` with its one sentence and exit status 1, without traceback.

    MONAI instantiates config items and applies transforms inside wrappers that re-raise as `RuntimeError`,
    so the whole chain of causes is searched. Any other exception keeps its traceback: it is a defect.
    Under torchrun a traceback-free exit is enough too, because the hook runs in each worker process.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.excepthook is not _print_sentence:
        global _previous_hook
        _previous_hook = sys.excepthook
        sys.excepthook = _print_sentence


_previous_hook = sys.excepthook


def _print_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = find_cause(error)
    if cause is None:
        _previous_hook(kind, error, trace)
        return
    sys.stdout.flush()
    if "tqdm" in sys.modules:  # a bar that is still open would be drawn again below the sentence
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    sys.stderr.write(f"\nError: {cause}\n")  # the empty line sets it off from a progress bar


def _read_worker(error: BaseException) -> ToolsError | None:
    """Return the `ToolsError` in the traceback of a data loader's worker."""
    text = str(error)
    if "DataLoader worker process" not in text.partition("\n")[0]:
        return None
    sentence = re.search(
        r"^(?:Original )?tools\.errors\.(\w+): (.+?): found (.+), wanted (.+); (.+)\.$", text, re.MULTILINE
    )
    kind = globals().get(sentence[1]) if sentence else None
    if sentence is None or not (isinstance(kind, type) and issubclass(kind, ToolsError)):
        return None
    return kind(*sentence.groups()[1:])


def _explain_argument(error: BaseException) -> ConfigValueError | None:
    """Return what is wrong if MONAI could not instantiate a component because of an argument's name."""
    component = re.match(r"Failed to instantiate component '([^']+)'", str(error))
    if component is None or not isinstance(error.__cause__, TypeError):
        return None
    name = component[1].rpartition(".")[2]
    call = re.fullmatch(
        rf"{re.escape(name)}(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'.*", str(error.__cause__)
    )
    if call is None:
        return None
    remedy = f"remove or correct the key that ends in #{call[1]}, in the config files or on the command line"
    return ConfigValueError(component[1], f"the argument {call[1]}", "arguments that it has", remedy)


def _explain_memory(error: BaseException, whole: BaseException) -> MemoryLimitError | None:
    """Return how much was asked for in vain, if that is what happened; `whole` is what was raised at last."""
    if not is_out_of_memory(error):
        return None
    size = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    found = f"no room for a further {size[1]}" if size else "no room left"
    if total := re.search(r"total capacity of ([\d.]+ \w+)", str(error)):
        found += f" beside what the {total[1]} hold already"
    if any(map(_is_in_cache, _iterate_chain(whole))):
        return MemoryLimitError("memory", found, "what the prepared volumes need", _CACHE_REMEDY)
    options = "--batch_size, --num_samples, --num_crops, --sw_batch_size, --roi_size, --crop_size"
    remedy = f"lower what of {options} the config has, or take a smaller network"
    return MemoryLimitError("memory", found, "what a step of the run needs", remedy)


def _is_in_cache(error: BaseException) -> bool:
    """Tell whether an error was raised while volumes were prepared for the cache."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name in ("_fill_cache", "_load_cache_item") and "monai" in code.co_filename:
            return True
        trace = trace.tb_next
    return False


def _explain_loader(error: BaseException) -> MemoryLimitError | None:
    """Return why a data loader's workers ended, or could not hand over what they had loaded."""
    text = str(error)
    if not isinstance(error, (RuntimeError, OSError)):
        return None
    if re.search(r"Too many open files|received \d items of ancdata", text) or getattr(error, "errno", None) == 24:
        remedy = "raise the limit with `ulimit -n 4096`, or give --num_workers 0"
        return MemoryLimitError("open files", "more than this shell allows", "room for those of the workers", remedy)
    if ("torch_" in text and "No space left on device" in text) or "out of shared memory" in text:
        remedy = "give --num_workers 0, or more shared memory (docker: --shm-size 2g)"
        return MemoryLimitError("/dev/shm", "no room left", "room for the volumes that workers hand over", remedy)
    if killed := re.search(
        r"DataLoader worker \(pid\(?s?\)? ?[\d, ]+\) (is killed by signal: \w+|exited unexpectedly)", text
    ):
        remedy = "give --num_workers 0, " + _CACHE_REMEDY
        return MemoryLimitError("memory", f"a process that loads data and {killed[1]}", "room for it", remedy)
    return None


def _iterate_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exceptions that Python would show in a traceback of `error`, last raised first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
