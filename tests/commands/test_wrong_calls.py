# SPDX-License-Identifier: Apache-2.0
"""Wrong calls: each ends with one sentence and status 2, before anything is written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tools.__main__ import tools
from tools.bundles import BUNDLES
from tools.demonstration import EMBEDDED

SCAN = EMBEDDED / "msd04_hippocampus" / "imagesTr" / "hippocampus_011.nii.gz"
MODEL = "unetr_btcv/msd04_hippocampus"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user with all kinds of things in it, from where the commands are typed."""
    (tmp_path / "scan.nii.gz").write_bytes(SCAN.read_bytes())
    for folder in ("empty", "text", "nested/scans", "run", "labelled/imagesTr", "labelled/labelsTr", "twice"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "text" / "readme.txt").write_text("no scan")
    (tmp_path / "nested" / "scans" / "a.nii.gz").write_bytes(SCAN.read_bytes())
    (tmp_path / "page.nii.gz").write_text("<html>404</html>")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "bundle.zip").write_bytes(b"no zip")
    (tmp_path / "best.pt").write_bytes(gzip.compress(b"no checkpoint"))
    (tmp_path / "run" / "model.yaml").write_text(f"bundle_root: {BUNDLES / 'unetr_btcv'}\nlabels: [background, x]\n")
    (tmp_path / "broken.yaml").write_text("labels: [background")
    for kind in ("imagesTr", "labelsTr"):
        for number in range(6):
            image = nib.Nifti1Image(np.full((8, 8, 8), number, np.uint8), np.eye(4))
            nib.save(image, tmp_path / "labelled" / kind / f"c{number}.nii.gz")
    (tmp_path / "twice" / "last.pt").write_bytes(b"of another training")
    labels = {"background": 0, "spleen": [1, 2]}
    (tmp_path / "regions.json").write_text(json.dumps({"labels": labels, "training": []}))
    nib.save(nib.Nifti1Image(np.zeros((300, 300, 300), np.int16) - 1000, np.eye(4)), tmp_path / "air.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CALLS = {
    "segment": [
        ("segment", "Missing option '-o'"),
        ("segment scan.nii.gz", "Missing option '-o'"),
        ("segment -o out", "found nothing, wanted a scan or a folder of scans"),
        (f"segment -i scan.nii.gz -o out -m {MODEL} --overlpa 0.5", "No such option '--overlpa'"),
        ("segment -i scan.nii.gz -o out --ouptut x", "(Did you mean one of: '--input', '--output'?)"),
        ("segment -i scan.nii.gz -o out -rs spleen", "wanted one or more of anterior hippocampus"),
        (f"segment -i scan.nii.gz -o out -m {MODEL} -rs anterior_hipocampus", "write anterior hippocampus"),
        (
            "segment -i nothing.nii.gz -o out",
            "nothing.nii.gz: found no such file or folder, wanted a folder of scans; correct --input",
        ),
        ("segment -i scan.nii.gz gone.nii.gz -o out", "gone.nii.gz: found no such file or folder"),
        ("segment -i empty -o out", "empty: found no .nii or .nii.gz file"),
        ("segment -i text -o out", "text: found no .nii or .nii.gz file"),
        ("segment -i nested -o out", "give one of its sub-folders with scans: scans"),
        ("segment -i photo.png -o out", "photo.png: found a file that is no NIfTI scan"),
        ("segment -i page.nii.gz -o out", "page.nii.gz: found no gzip data"),
        ("segment -i scan.nii.gz -o scan.nii.gz", "a folder for the results"),
        ("segment -i scan.nii.gz -o out -m unter_btcv", "did you mean unetr_btcv"),
        ("segment -i scan.nii.gz -o out -m unetr_btcv/spleen", "wanted the name of a model"),
        ("segment -i scan.nii.gz -o out -m openkbp_hn", "give one of swin_unetr_ssl/openkbp_hn, voco"),
        ("segment -i scan.nii.gz -o out -m empty", "no model.yaml and no configs/inference.json"),
        ("segment -i scan.nii.gz -o out -m run", "best.pt: found no such file, the weights of run"),
        ("segment -i scan.nii.gz -o out -m bundle.zip", "bundle.zip: found no zip file that can be read"),
        ("segment -i scan.nii.gz -o out -m photo.png", "wanted the name of a model"),
        ("segment -i scan.nii.gz -o out -m ''", "wanted the name of a model"),
        ("segment -i scan.nii.gz -o out -m voco_finetune", "are none: scan.nii.gz"),
        ("segment -i air.nii.gz -o out", "none for air.nii.gz that fits alone"),
        (f"segment -i scan.nii.gz -o out -m {MODEL} -d gpu9x", "wanted auto, cpu, cuda or cuda:N"),
        (f"segment -i scan.nii.gz -o out -m {MODEL} -d cuda:", "wanted auto, cpu, cuda or cuda:N"),
    ],
    "train": [
        ("train -o out", "Missing argument 'DATASET'"),
        ("train labelled", "Missing option '-o'"),
        ("train nothing -o out", "nothing: found no such folder, wanted the folder of a data set; correct DATASET"),
        ("train empty -o out", "no list of training cases and no folders imagesTr and labelsTr"),
        ("train labelled -o out", "give --labels background FIRST SECOND"),
        ("train regions.json -o out", "no training case"),
        ("train labelled -o out --labels a b --card openkbp_hn", "leave out --labels"),
        ("train labelled -o out --card openkpb_hn", "'openkpb_hn'"),
        ("train labelled -o out --card mine.yaml", "mine.yaml: found no such file"),
        ("train labelled -o out --card broken.yaml", "broken.yaml: found no YAML"),
        ("train labelled -o out --labels a b -m unet", "'unet' is no bundle"),
        ("train labelled -o out --labels a b --epochs 0", "0 is not in the range"),
        ("train labelled -o out --labels a b --epochs many", "'many' is not a valid integer"),
        ("train labelled -o out --labels a b --pretrained gone.pt", "wanted a file, a model, or one of the public"),
        ("train labelled -o out --labels a b --pretrained unetr_btcv_torchscript", "weights fetch unetr_btcv --name"),
        ("train labelled -o out --labels a b --config_file gone.yaml", "gone.yaml: found no such file"),
        ("train labelled -o out --labels a b --config_file broken.yaml", "broken.yaml: found no YAML"),
        ("train labelled -o twice --labels a b", "give --resume to go on with it"),
    ],
    "others": [
        ("evaluate labelled", "Missing option '-m'"),
        ("evaluate gone -m unetr_btcv", "gone: found no such folder, wanted the folder of a data set; correct DATASET"),
        ("evaluate labelled -m nobody", "wanted the name of a model"),
        ("info nothing", "wanted a scan (.nii, .nii.gz), a checkpoint"),
        ("info page.nii.gz", "page.nii.gz: found no gzip data"),
        ("info best.pt", "best.pt: found"),
        ("models now", "Got unexpected extra argument"),
        ("modles", "Did you mean 'models'"),
    ],
}


@pytest.mark.parametrize(("call", "words"), [call for calls in CALLS.values() for call in calls])
def test_it_ends_with_one_sentence_and_status_2_and_writes_nothing(call: str, words: str, place: Path):
    before = sorted(place.rglob("*"))
    done = CliRunner().invoke(tools, ["" if word == "''" else word for word in call.split()])
    assert done.exit_code == 2, done.output
    sentences = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, done.output
    assert words in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert sorted(place.rglob("*")) == before
