# SPDX-License-Identifier: Apache-2.0
"""What bundles say of public weights is read, chosen and listed, and wrong entries are named."""

from __future__ import annotations

import pytest
import yaml
from monai.bundle import download_large_files

from tools import catalogue
from tools.bundles import BUNDLES
from tools.catalogue import choose_files, list_files, read_catalogue
from tools.errors import ConfigValueError
from tools.weights import LAYOUTS

NAMES = sorted(path.parent.name for path in BUNDLES.glob("*/large_files.yml"))
ENTRY = {"name": "one", "path": "models/one.pt", "url": "http://127.0.0.1/one.pt", "licence": "CC0", "layout": "own"}


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    """An empty folder of bundles, and a function that writes the entries of the bundle `toy`."""
    monkeypatch.setattr(catalogue, "BUNDLES", tmp_path)

    def write(*entries) -> None:
        (tmp_path / "toy").mkdir(exist_ok=True)
        (tmp_path / "toy" / "large_files.yml").write_text(yaml.safe_dump({"large_files": list(entries)}))

    return write


def test_all_four_bundles_name_their_public_weights():
    assert NAMES == ["inflated_vit_seg", "swin_unetr_ssl", "unetr_btcv", "voco_finetune"]


@pytest.mark.parametrize("bundle", NAMES)
def test_the_public_weights_of_a_bundle_are_described(bundle):
    files = read_catalogue(bundle)
    assert len({file.name for file in files}) == len({file.path for file in files}) == len(files) > 0
    for file in files:
        assert file.url.startswith("https://")
        assert file.target == BUNDLES / bundle / file.path
        assert file.target.parent.name == "models"
        assert file.licence
        assert file.layout in LAYOUTS
        assert (file.hash_type, len(file.hash_val or "0" * 64)) in (("sha256", 64), ("md5", 32))
        assert file.network is None or file.network["_target_"].startswith("monai.networks.nets.")
        assert file.converted is None or (file.network and file.converted == "models/model.pt")


def test_the_networks_of_the_entries_can_be_built():
    networks = [f.build_network() for f in read_catalogue("swin_unetr_ssl") if f.name in ("btcv_tiny", "btcv_small")]
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [15_703_304, 4_078_220]
    assert read_catalogue("inflated_vit_seg")[0].build_network() is None


def test_the_list_names_all_files_and_says_which_are_here():
    table = list_files()
    for bundle in NAMES:
        for file in read_catalogue(bundle):
            assert any(file.name in line and bundle in line for line in table.splitlines())
    assert "371 MB" in table


def test_files_are_chosen_by_name(bundles):
    bundles(ENTRY, ENTRY | {"name": "two", "path": "models/two.pt"})
    assert [file.name for file in choose_files("toy", None)] == ["one"]
    assert [file.name for file in choose_files("toy", "two")] == ["two"]
    assert [file.name for file in choose_files("toy", "all")] == ["one", "two"]
    with pytest.raises(ConfigValueError, match="'twoo', wanted all or one of one, two; give --name two"):
        choose_files("toy", "twoo")
    with pytest.raises(ConfigValueError, match="'tou', wanted one of toy"):
        choose_files("tou", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": ""}, "no licence"),
        ({"sha256": "00"}, "the key sha256"),
        ({"path": "/models/one.pt"}, "a path inside the bundle"),
        ({"path": "../one.pt"}, "a path inside the bundle"),
        ({"converted": "../../model.pt"}, "a path inside the bundle"),
    ],
)
def test_a_wrong_entry_is_named(bundles, change, message):
    bundles(ENTRY, ENTRY | change)
    with pytest.raises(ConfigValueError, match=rf"large_files\.yml, entry 2: found .*{message}|{message}"):
        read_catalogue("toy")


@pytest.mark.parametrize("content", ["", "large_files: 3", "- 1", "large_files: [3]"])
def test_a_file_without_entries_is_refused(bundles, tmp_path, content):
    bundles()
    (tmp_path / "toy" / "large_files.yml").write_text(content)
    with pytest.raises(ConfigValueError, match=r"large_files\.yml"):
        read_catalogue("toy")


def test_expressions_in_an_entry_are_not_evaluated(bundles):
    network = {"_target_": "torch.nn.Linear", "in_features": "$__import__('os').getpid()", "out_features": 2}
    bundles(ENTRY | {"network": network})
    with pytest.raises(Exception, match="Linear"):
        read_catalogue("toy")[0].build_network()


def test_monai_reads_the_same_file(bundles, tmp_path):
    (tmp_path / "source.pt").write_bytes(b"weights")
    entry = {"url": (tmp_path / "source.pt").as_uri(), "size_mb": 1, "network": {"_target_": "torch.nn.Linear"}}
    bundles(ENTRY | entry)
    download_large_files(str(tmp_path / "toy"))
    assert (tmp_path / "toy" / "models" / "one.pt").read_bytes() == b"weights"
