# SPDX-License-Identifier: Apache-2.0
"""What the server has and may touch: scans and labels in the folder of studies, models with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import RequestError
from tools.labelling.uploads import SUFFIXES
from tools.labelling.values import Kind, points, setting, shorten


class AbsentError(LookupError):
    """There is no scan, label or session of this name; the text is the whole message for the user."""


class Holdings:
    """The scans, labels and models of MONAI Label's app.

    Args:
        app: an instance of MONAI Label 0.8.5's `MONAILabelApp`.
        follow_links: whether scans and labels in the studies may be links to files elsewhere.
    """

    def __init__(self, app: Any, follow_links: bool = False) -> None:
        self.app = app
        self.follow_links = follow_links
        remote = str(app.studies).startswith(("http://", "https://"))
        self.studies = None if remote else Path(app.studies).resolve()  # None: they are on a DICOMweb server

    def find_scan(self, subject: str, scan: str) -> str:
        """Return the name of a scan that is in the studies.

        Raises:
            AbsentError: if there is none of this name.
            RequestError: if it is a link to elsewhere.
        """
        if self.studies is not None:  # the other server says itself what it does not have
            if scan not in self.list_scans():
                raise AbsentError(f"There is no image {shorten(scan)} in the studies")
            self._check_read(subject, scan, self.app.datastore().get_image_uri(scan))
        return scan

    def list_scans(self) -> list[str]:
        """Return the names of the scans in the folder of studies; none of those on another server."""
        return self.app.datastore().list_images() if self.studies is not None else []

    def list_tags(self, scan: str) -> list[str]:
        """Return the tags of the labels that a scan in the folder of studies has."""
        return list(self.app.datastore().get_labels_by_image_id(scan)) if self.studies is not None else []

    def check_label(self, subject: str, scan: str, tag: str) -> None:
        """Raise `RequestError` if the label of a scan is a link to elsewhere; there may be none."""
        if self.studies is not None and (uri := self.app.datastore().get_label_uri(scan, tag)):
            self._check_read(subject, scan, uri)

    def check_all(self, subject: str) -> None:
        """Raise `RequestError` if one of all scans or labels is a link to elsewhere."""
        for scan in self.list_scans():
            self._check_read(subject, scan, self.app.datastore().get_image_uri(scan))
            for tag in self.list_tags(scan):
                self.check_label(subject, scan, tag)

    def check_scan_place(self, subject: str, scan: str) -> None:
        """Raise `RequestError` if a scan of this name would be written or removed outside of the studies."""
        if self.studies is not None:
            datastore = self.app.datastore()
            self._check_written(subject, datastore._datastore.image_path(), scan, datastore.get_image_uri(scan))

    def check_label_place(self, subject: str, scan: str, tag: str) -> None:
        """Raise `RequestError` if the label of a scan would be written or removed outside of the studies."""
        if self.studies is not None:
            datastore = self.app.datastore()
            self._check_written(subject, datastore._datastore.label_path(tag), scan, datastore.get_label_uri(scan, tag))

    def has_session(self, session: str) -> bool:
        """Tell whether a scan was uploaded under the id of this session."""
        sessions = self.app.sessions()
        return sessions is not None and bool(sessions.get_session(session))

    def find_model(self, section: str, model: str) -> str:
        """Return the name of a model that can segment, of the section `models`, or train, of `trainers`.

        Raises:
            AbsentError: if there is none of this name.
        """
        if model not in self.app.info().get(section, {}):
            raise AbsentError(f"There is no model {shorten(model)} available")
        return model

    def get_settings(self, section: str, name: str) -> dict[str, Kind]:
        """Return the kinds of the settings that `/info/` offers.

        Args:
            section: `models`, `trainers` or `strategies`.
            name: of the model or strategy; one that does not exist has no settings.
        """
        config = self.app.info().get(section, {}).get(name, {}).get("config") or {}
        return {key: setting(default) for key, default in config.items()}

    def get_prompts(self, model: str) -> dict[str, Kind]:
        """Return the kinds of the clicks that a model for interaction takes, by the names of its labels."""
        labels = self.app.info().get("models", {}).get(model, {}).get("labels") or {}
        names = labels.keys() if isinstance(labels, Mapping) else labels
        return {str(name): points for name in names}

    def _check_read(self, subject: str, scan: str, path: str) -> None:
        if self.studies is None or self.follow_links or Path(path).resolve().is_relative_to(self.studies):
            return
        found = f"{shorten(scan)}, a link to a file outside of the studies"
        remedy = "copy the file there, or start the server with --follow_links"
        raise RequestError(subject, found, "files in the studies", remedy)

    def _check_written(self, subject: str, folder: str, scan: str, present: str) -> None:
        """Raise if what is there, of any suffix, or what may be written lies elsewhere."""
        paths = [Path(folder, f"{scan}{suffix}") for suffix in SUFFIXES] + [Path(present)] * bool(present)
        if self.studies is None or not all(path.resolve().is_relative_to(self.studies) for path in paths):
            found = f"{shorten(scan)}, a link to a file outside of the studies"
            raise RequestError(subject, found, "a file in the studies", "take another name")
