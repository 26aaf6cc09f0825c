"""Files of torch.save are read as torch reads them."""

import functools
import sys
from collections import OrderedDict

import numpy as np
import pytest
from torch_formats import KINDS, WRITERS, tensor, write_zip

from retina_jax.interop.files import read_arrays


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def saved_by_torch(torch):
    """All dtypes and kinds of views, in a training checkpoint."""
    generator = torch.Generator().manual_seed(0)
    random = functools.partial(torch.randn, generator=generator)
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    values = {n: (random(4, 3) * 50).to(getattr(torch, n)) for n in names}
    values["uint8"] = values["int8"].abs().to(torch.uint8)
    values["bool"] = values["int8"] > 0
    base = random(5, 4, 3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    tied = torch.nn.Linear(3, 3)
    return OrderedDict(
        **values,
        base=base,
        transposed=base.permute(2, 0, 1),
        part=base[1:3, ::2, 1],
        expanded=base[:1].expand(6, 4, 3),
        last=base.to(memory_format=torch.contiguous_format).flip(0),
        channels=random(2, 3, 4, 5).to(memory_format=torch.channels_last),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 7),
        single=base[2, 1, 2],
        parameter=torch.nn.Parameter(base[1]),
        tied=tied.weight,
        again=tied.weight.t(),
        **{f"model.{name}": value for name, value in model.state_dict().items()},
    )


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_reads_the_same(path, new_format, protocol):
    torch = pytest.importorskip("torch")
    torch.save(
        {"model": saved_by_torch(torch), "size": torch.Size([3]), "epoch": 2},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=new_format,
    )
    theirs = torch.load(path, weights_only=protocol == 2)["model"]
    assert_same(torch, read_arrays(path), theirs)


def assert_same(torch, ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
        assert ours[name].dtype == value.dtype
        assert ours[name].shape == value.shape
        assert ours[name].tobytes() == value.tobytes()


def test_torch_reads_the_same_from_a_file_of_a_big_endian_machine(path):
    torch = pytest.importorskip("torch")
    content = {
        kind: tensor(np.arange(8).astype(dtype), kind)
        for kind, dtype in KINDS.items()
        if kind != "BoolStorage"
    }
    write_zip(path, content, "big")
    assert_same(torch, read_arrays(path), torch.load(path, weights_only=True))


def test_hand_written_files_are_torchs_own_format(path):
    torch = pytest.importorskip("torch")
    values = np.arange(6, dtype=np.float32)
    for write in WRITERS:
        write(path, OrderedDict(a=tensor(values), b=tensor(values.astype(int), "LongStorage")))
        assert_same(torch, read_arrays(path), torch.load(path, weights_only=True))


def test_a_file_without_checksums_is_read(path):
    serialization = pytest.importorskip("torch").serialization
    torch = sys.modules["torch"]
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, path)
    finally:
        serialization.set_crc32_options(before)
    assert read_arrays(path)["a"].tolist() == [0, 1, 2]


def test_imagenets_mobilenet_is_as_torch_reads_it(path, shared_weights):
    torch = pytest.importorskip("torch")
    source = shared_weights / "mobilenet_v2-b0353104.pth"
    theirs = torch.load(source, weights_only=True)
    assert_same(torch, read_arrays(source), theirs)
    torch.save(theirs, path)
    assert_same(torch, read_arrays(path), theirs)
