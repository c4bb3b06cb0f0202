# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
from comparisons import assert_equal_to_scale
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import MERGING_MODE
from monai.networks.utils import copy_model_state
from torch import nn

from tools.errors import ConfigValueError
from tools.networks import ScriptableSwinUNETR
from tools.networks.patch_merging import FORMS, PatchMerging, choose_form, name_form, read_form
from tools.pretraining import SwinSSL, SwinUNETREncoder

SIZE = (64, 32, 32)
# of MONAI 0.9.0 to 1.4.0, as their source has them: start of the slice along each axis, block by block
OLD_SLICES = ["000", "100", "010", "001", "101", "010", "001", "111"]


def merge_voxel_by_voxel(x: torch.Tensor, slices: list[str], merging: nn.Module) -> torch.Tensor:
    """Do with loops what a patch merging does to a map `(1, X, Y, Z, C)` of even sizes."""
    _, *shape, channels = x.shape
    result = torch.empty(1, *(size // 2 for size in shape), 2 * channels)
    for i in range(shape[0] // 2):
        for j in range(shape[1] // 2):
            for k in range(shape[2] // 2):
                voxels = [x[0, 2 * i + int(a), 2 * j + int(b), 2 * k + int(c)] for a, b, c in slices]
                joined = torch.cat(voxels)
                normal = (joined - joined.mean()) / (joined.var(unbiased=False) + 1e-5).sqrt()
                result[0, i, j, k] = merging.reduction.weight @ (normal * merging.norm.weight + merging.norm.bias)
    return result


def make_merging(form: str, dim: int = 3) -> PatchMerging:
    torch.manual_seed(0)
    merging = PatchMerging(dim, form=form)
    for parameter in merging.norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return merging


def test_the_original_form_reads_the_voxels_that_old_releases_read():
    merging, x = make_merging("original"), torch.rand(1, 4, 6, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_equal_to_scale(merging(x), merge_voxel_by_voxel(x, OLD_SLICES, merging))


@pytest.mark.parametrize(("form", "mode"), [("corrected", "merging"), ("v2", "mergingv2")])
@pytest.mark.parametrize("shape", [(4, 6, 2), (3, 5, 4), (1, 1, 7)])
def test_the_other_forms_are_those_of_this_monai(form, mode, shape):
    ours, theirs = make_merging(form), MERGING_MODE[mode](3)
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if name != "slices"})
    x = torch.rand(2, *shape, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_be_scripted(form):
    merging, x = make_merging(form), torch.rand(2, 3, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(torch.jit.script(merging)(x), merging(x))


def make_network(patch_merging: str | None = None) -> ScriptableSwinUNETR:
    torch.manual_seed(0)
    return ScriptableSwinUNETR(SIZE, 1, 2, feature_size=12, window_size=2, patch_merging=patch_merging).eval()


def compute(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(2)))


def test_the_corrected_form_has_the_names_of_monais_network_and_the_original_one_cannot_pass_for_it():
    theirs = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=2).eval()
    theirs.load_state_dict(make_network().state_dict())
    assert torch.equal(compute(theirs), compute(make_network()))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"swinViT\.layers1\.0\.downsample\.slices"'):
        theirs.load_state_dict(make_network("original").state_dict())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("target", [None, "auto", "corrected"])
def test_a_state_dict_brings_its_form_along(target, strict):
    source, network = make_network("original"), make_network(target)
    network.load_state_dict(source.state_dict(), strict=strict)
    assert read_form(network) == "original"
    assert torch.equal(compute(network), compute(source))
    assert not torch.equal(compute(network), compute(make_network()))
    assert network.state_dict().keys() == source.state_dict().keys()


def test_a_network_that_is_open_takes_the_form_where_values_are_copied_by_name():
    source, network = make_network("original"), make_network("auto")
    copy_model_state(network, source.state_dict())  # as ckpt_export and monai.bundle.load do
    assert torch.equal(compute(network), compute(source))
    copy_model_state(network, make_network("auto").state_dict())
    assert torch.equal(compute(network), compute(make_network()))


@pytest.mark.parametrize("form", ["original", "corrected", "v2"])
def test_a_state_dict_that_tells_nothing_leaves_the_form(form):
    network, plain = make_network(form), make_network().state_dict()
    network.load_state_dict(plain)
    assert read_form(network) == form
    expected = make_network()
    choose_form(expected, form)
    assert torch.equal(compute(network), compute(expected))


def test_slices_that_no_release_has_are_refused():
    state = make_network("original").state_dict()
    state["swinViT.layers1.0.downsample.slices"] = torch.zeros(8, 3, dtype=torch.uint8)
    with pytest.raises(ConfigValueError, match=r"^slices: found \[\[0, 0, 0\]"):
        make_network().load_state_dict(state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=2).eval(),
        make_network,
        lambda: SwinSSL(1, SIZE, feature_size=12, window_size=2).eval().swinViT,
        lambda: SwinUNETREncoder(1, SIZE, feature_size=12, window_size=2).eval(),
    ],
)
def test_the_form_of_any_network_can_be_changed_and_changed_back(make):
    network = make()
    with torch.no_grad():
        image = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))

        def run() -> torch.Tensor:
            output = network(image)
            return output[-1] if isinstance(output, list) else output

        before = run()
        outputs = {}
        for form in FORMS:
            choose_form(network, form)
            assert read_form(network) == form
            outputs[form] = run()
        assert torch.equal(outputs["corrected"], before)
        assert len({tuple(output.flatten()[:50].tolist()) for output in outputs.values()}) == 3
        choose_form(network, "original")
        assert torch.equal(run(), outputs["original"])
        assert torch.equal(copy.deepcopy(network)(image)[-1], network(image)[-1])


def test_maps_of_two_dimensions_keep_monais_merging():
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=2, spatial_dims=2)
    assert read_form(network) is None
    with pytest.raises(ConfigValueError, match="spatial_dims: found 2"):
        PatchMerging(3, spatial_dims=2)


@pytest.mark.parametrize("form", ["orginal", "", None, 1])
def test_an_unknown_form_is_refused(form):
    with pytest.raises(ConfigValueError, match=r"patch_merging: found .*one of original, corrected, v2"):
        PatchMerging(3, form=form)


def test_the_form_is_read_where_tensors_have_no_values():
    with torch.device("meta"):
        merging = PatchMerging(3, form="original")
    assert merging.reduction.weight.is_meta
    assert merging.form == "original"


def test_every_form_is_named_by_its_slices():
    assert {name_form(torch.tensor(slices)) for slices in FORMS.values()} == set(FORMS)
    assert ["".join(map(str, offset)) for offset in FORMS["original"]] == OLD_SLICES
