# SPDX-License-Identifier: Apache-2.0
"""What the server touches lies in the folder of studies, links or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.errors import RequestError
from tools.labelling.holdings import AbsentError, Holdings

OUT = "a link to a file outside of the studies"


def test_scan_that_is_there_is_found_and_no_other(app: SimpleNamespace):
    holdings = Holdings(app)
    assert holdings.find_scan("image", "case") == "case"
    holdings.check_label("image", "case", "final")
    holdings.check_all("studies")
    holdings.check_scan_place("image", "new")
    holdings.check_label_place("image", "new", "new")
    with pytest.raises(AbsentError, match="There is no image 'nobody' in the studies"):
        holdings.find_scan("image", "nobody")


def test_link_to_a_file_in_the_studies_is_a_scan(app: SimpleNamespace, studies: Path):
    (studies / "sub").mkdir()
    (studies / "sub" / "x.nii.gz").touch()
    (studies / "link.nii.gz").symlink_to(studies / "sub" / "x.nii.gz")
    Holdings(app).find_scan("image", "link")
    Holdings(app).check_all("studies")


def test_link_to_elsewhere_is_read_if_its_owner_says_so_and_never_written(
    app: SimpleNamespace, studies: Path, tmp_path: Path
):
    (studies / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    holdings = Holdings(app)
    for check in (lambda: holdings.find_scan("image", "link"), lambda: holdings.check_all("studies")):
        with pytest.raises(RequestError, match=rf"found 'link', {OUT}, wanted .*--follow_links"):
            check()
    following = Holdings(app, follow_links=True)
    assert following.find_scan("image", "link") == "link"
    following.check_all("studies")
    for one in (holdings, following):
        with pytest.raises(RequestError, match=rf"image: found 'link', {OUT}"):
            one.check_scan_place("image", "link")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_place_is_checked_with_each_suffix_and_dangling_links(
    app: SimpleNamespace, studies: Path, tmp_path: Path, suffix: str
):
    (studies / f"new{suffix}").symlink_to(tmp_path / "not_there_yet")
    (studies / "labels" / "final" / f"new{suffix}").symlink_to(tmp_path / "not_there_yet")
    with pytest.raises(RequestError, match=OUT):
        Holdings(app).check_scan_place("image", "new")
    with pytest.raises(RequestError, match=OUT):
        Holdings(app).check_label_place("image", "new", "final")


def test_link_of_another_suffix_is_not_removed_with_its_target(
    app: SimpleNamespace, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in (studies, studies / "labels" / "final"):
        (folder / "slide.svs").symlink_to(tmp_path / "secret.nii.gz")
    monkeypatch.setattr(app.datastore(), "get_image_uri", lambda scan: str((studies / "slide.svs").resolve()))
    monkeypatch.setattr(app.datastore(), "get_label_uri", lambda scan, tag: str((studies / "slide.svs").resolve()))
    holdings = Holdings(app, follow_links=True)
    with pytest.raises(RequestError, match=OUT):
        holdings.check_scan_place("id", "slide")
    with pytest.raises(RequestError, match=OUT):
        holdings.check_label_place("id", "slide", "final")


def test_label_and_folder_of_labels_may_be_no_links_to_elsewhere(app: SimpleNamespace, studies: Path, tmp_path: Path):
    label = studies / "labels" / "final" / "case.nii.gz"
    label.unlink()
    label.symlink_to(tmp_path / "secret.nii.gz")
    (studies / "labels" / "other").symlink_to(tmp_path)
    holdings = Holdings(app)
    for check in (lambda: holdings.check_label("label", "case", "final"), lambda: holdings.check_all("studies")):
        with pytest.raises(RequestError, match=OUT):
            check()
    with pytest.raises(RequestError, match=OUT):
        holdings.check_label_place("label", "case", "other")


def test_scans_on_another_server_are_left_to_it(app: SimpleNamespace):
    app.studies = "http://127.0.0.1:8042/dicom-web"
    app.datastore = lambda: pytest.fail("it is asked over the network")
    holdings = Holdings(app)
    assert holdings.find_scan("image", "1.2.840") == "1.2.840"
    assert holdings.list_scans() == holdings.list_tags("1.2.840") == []
    holdings.check_label("image", "1.2.840", "final")
    holdings.check_label_place("image", "1.2.840", "final")
    holdings.check_scan_place("image", "1.2.840")
    holdings.check_all("studies")
