# SPDX-License-Identifier: Apache-2.0
"""Public weights fetched for a bundle: downloaded, verified, checked against their network, converted."""

from __future__ import annotations

import logging
from pathlib import Path

from tools.catalogue import PublicFile, choose_files
from tools.errors import CheckpointError, ConfigValueError
from tools.networks.patch_merging import AUTO, FORMS
from tools.weights.conversion import convert
from tools.weights.downloads import download
from tools.weights.files import read_state_dict
from tools.weights.layouts import LAYOUTS, recognize, strip_prefixes
from tools.weights.loading import refuse
from tools.weights.matching import match
from tools.weights.options import read_inflation

logger = logging.getLogger(__name__)


def fetch(bundle: str, name: str | None = None, mirror: str | None = None) -> list[Path]:
    """Fetch public weights of a bundle into its folder, and return the files to be used.

    A file that is there already is verified and not fetched again, so that this works without a network.

    Args:
        bundle: name of the bundle.
        name: of an entry in its `large_files.yml`; `all`; None for the first, the bundle's default.
        mirror: folder or URL that has the files under their own names.

    Raises:
        ConfigValueError: if bundle or name are unknown, or an entry names a layout or a form that is none.
        DownloadError: if a file cannot be had; its text says what to do by hand.
        CheckpointError: if what arrived are not the weights that the bundle means.
    """
    files = choose_files(bundle, name)
    for file in files:
        _check_entry(file)
    return [_fetch_file(file, mirror) for file in files]


def _check_entry(file: PublicFile) -> None:
    """Raise `ConfigValueError` if an entry says of its weights what no loader knows."""
    place = f"{file.source}, {file.name}"
    for name, value, known in (("layout", file.layout, LAYOUTS), ("patch_merging", file.patch_merging, FORMS)):
        if value is not None and value not in known:
            raise ConfigValueError(place, f"{name} {value}", f"one of {', '.join(known)}", "correct it")
    read_inflation(file.inflation, f"{place}, inflation")


def _fetch_file(file: PublicFile, mirror: str | None) -> Path:
    path = download(
        file.url,
        file.target,
        size_bytes=file.size_bytes,
        hash_val=file.hash_val,
        hash_type=file.hash_type,
        mirror=mirror,
        check=lambda part: _check(part, file),
    )
    logger.info("%s: %s", file.name, path)
    network = file.build_network() if file.converted else None
    if file.converted is None or network is None:
        return path
    converted = file.bundle / file.converted
    merging = file.patch_merging or AUTO
    report = convert(path, network, converted, layout=file.layout, inflation=file.inflation, patch_merging=merging)
    logger.info("%s", report)
    return converted


def _check(part: Path, file: PublicFile) -> None:
    """Raise `CheckpointError` unless the file is in the layout that the bundle says and fits its network."""
    try:
        state_dict = read_state_dict(part)
    except CheckpointError as error:  # told with the address, the name on disk is a temporary one
        raise CheckpointError(file.url, error.found, error.wanted, error.remedy) from error
    found = recognize({strip_prefixes(name): tensor for name, tensor in state_dict.items()})
    if found.name != file.layout:
        raise CheckpointError(
            file.url, f"{found.title} ({found.name})", f"the layout {file.layout}", "tell the maintainers of the bundle"
        )
    network = file.build_network()
    if network is not None:
        _, report = match(
            network,
            state_dict,
            file.layout,
            inflation=read_inflation(file.inflation),
            patch_merging=file.patch_merging or AUTO,
            source=file.url,
        )
        report.licence = file.licence
        if file.converted is None:  # else the conversion tells
            logger.info("%s", report)
        if not report.accepted:
            raise refuse(report, complete=False)
