# SPDX-License-Identifier: Apache-2.0
"""Zip files of bundles, unpacked so that nothing of them can land outside of their folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from tools.errors import BundleError

REMEDY = "download or export it again"


def name_bundle(path: Path) -> str:
    """Return the name of the one folder that a bundle's zip file holds.

    Raises:
        BundleError: if it is no zip file, does not hold one folder, or a name in it leads elsewhere.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise BundleError(path, f"no zip file that can be read ({error})", "the zip of a bundle", REMEDY) from error
    names = [_check_entry(path, entry) for entry in entries]
    tops = {name[0] for name in names}
    if len(tops) != 1 or any(len(name) == 1 and not entry.is_dir() for name, entry in zip(names, entries, strict=True)):
        found = f"{len(tops)} names at its top ({', '.join(sorted(tops)[:3])})" if tops else "nothing"
        raise BundleError(path, found, "one folder, named as the bundle", REMEDY)
    return tops.pop()


def unpack(path: Path, folder: Path) -> None:
    """Write what is in the one folder of a bundle's zip file into `folder`.

    Raises:
        BundleError: if a name leads elsewhere, an entry is a link, or the file is damaged.
    """
    name_bundle(path)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            target = folder.joinpath(*_check_entry(path, entry)[1:])
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with archive.open(entry) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
            except (zipfile.BadZipFile, EOFError, RuntimeError, FileExistsError) as error:
                raise BundleError(path, f"damaged data ({error})", "a whole zip file", REMEDY) from error


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """Return the parts of an entry's name."""
    # ZipFile cuts a name at a zero byte and turns the separators of this system into slashes
    name = PurePosixPath(entry.orig_filename)
    if (
        not name.parts
        or name.is_absolute()
        or ".." in name.parts
        or any(sign in entry.orig_filename for sign in "\\:\0")
    ):
        found = f"the name {entry.orig_filename!r}"
        raise BundleError(path, found, "names inside of its folder", "do not use this file")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise BundleError(path, f"the link {entry.filename!r}", "files", "do not use this file")
    return name.parts
