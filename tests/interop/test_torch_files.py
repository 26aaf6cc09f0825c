"""Files of torch.save, written by hand: right ones, damaged ones and hostile ones."""

import pickle
import re
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from torch_formats import (
    KINDS,
    WRITERS,
    Call,
    Name,
    Storage,
    Tensor,
    dumps,
    legacy_of,
    tensor,
    write_legacy,
    write_zip,
)

from retina_jax.errors import UserError
from retina_jax.interop import torch_files
from retina_jax.interop.files import NOTE, read_arrays, read_file

SIX = np.arange(6, dtype=np.float32)
both_formats = pytest.mark.parametrize("write", WRITERS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        read_arrays(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@both_formats
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_is_read(path, write, kind):
    values = np.array([[0, 1, 1], [1, 0, 100]]).astype(KINDS[kind])
    write(path, {"a": tensor(values, kind)})
    found = read_arrays(path)["a"]
    is_float = kind in ("DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage")
    assert found.dtype == (np.float32 if is_float else KINDS[kind])
    np.testing.assert_array_equal(found, values.astype(found.dtype))


VIEWS = {
    "transposed": (Tensor(None, (3, 2), (1, 3)), [[0, 3], [1, 4], [2, 5]]),
    "from the third": (Tensor(None, (2,), (1,), 2), [2, 3]),
    "every other": (Tensor(None, (3,), (2,)), [0, 2, 4]),
    "expanded": (Tensor(None, (2, 3), (0, 1), 3), [[3, 4, 5], [3, 4, 5]]),
    "one number": (Tensor(None, (), (), 5), 5),
    "empty": (Tensor(None, (0, 3), (3, 1), 6), np.zeros((0, 3))),
    "torch 0.2": (Tensor(None, (2,), (1,), 1, "_rebuild_tensor", ()), [1, 2]),
    "size": (Tensor(None, Call(Name("torch", "Size"), ((2,),)), (1,)), [0, 1]),
}


@both_formats
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_those_of_their_storage(path, write, view):
    tensor, values = VIEWS[view]
    tensor.storage = Storage(SIX)
    write(path, {"a": tensor})
    np.testing.assert_array_equal(read_arrays(path)["a"], np.float32(values))


@both_formats
def test_a_storage_without_elements(path, write):
    write(path, {"a": tensor(np.zeros((0, 4), np.float32)), "b": tensor(SIX)})
    assert read_arrays(path)["a"].shape == (0, 4)


@both_formats
def test_a_shared_storage_is_read_once(path, write):
    storage = Storage(SIX)
    write(path, {"a": Tensor(storage, (6,), (1,)), "b": Tensor(storage, (2, 3), (3, 1))})
    found = read_arrays(path)
    assert np.shares_memory(found["a"], found["b"])


@both_formats
def test_a_training_checkpoint_gives_its_weights(path, write):
    parameter = Name("torch._utils", "_rebuild_parameter")
    names = OrderedDict()
    names["module.a"] = tensor(SIX)
    names["module.count"] = tensor(np.int64([7]), "LongStorage")
    names["module.b"] = Call(parameter, (tensor(SIX + 1), True, OrderedDict()))
    ordered = Call(Name("collections", "OrderedDict"), (), {"_metadata": {"": {"version": 1}}})
    content = {
        "model": names,
        "optimizer": {"state": {0: {"momentum_buffer": tensor(SIX)}}, "param_groups": [{"lr": 1}]},
        "lr_scheduler": {"milestones": Call(Name("collections", "Counter"), ({8: 1, 11: 1},))},
        "best": Call(Name("numpy", "dtype"), ("f4",)),
        "other": ordered,
        "epoch": 3,
        NOTE: '{"order": "size_major"}',
    }
    write(path, content)
    found = read_file(path)
    assert {name: value.tolist() for name, value in found.arrays.items()} == {
        "a": [0, 1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5, 6], "count": [7]}  # fmt: skip
    assert found.note == {"order": "size_major"}


def test_the_order_of_bytes(path):
    content = {"a": tensor(SIX), "b": tensor(SIX.astype(ml_dtypes.bfloat16), "BFloat16Storage")}
    for order in ("little", "big", None):  # None: torch before 2.1
        write_zip(path, content, order)
        assert all((value == SIX).all() for value in read_arrays(path).values())
    # the legacy format stores the same bytes on every machine
    path.write_bytes(legacy_of(*dumps(content, views=True), little_endian=False))
    assert all((value == SIX).all() for value in read_arrays(path).values())


def test_views_of_storages_by_torch_before_0_4(path):
    storage = Storage(SIX, view=("part", 2, 3))
    write_legacy(path, {"a": Tensor(storage, (2,), (1,), 1)})
    assert read_arrays(path)["a"].tolist() == [3, 4]
    write_legacy(path, {"a": Tensor(storage, (2,), (1,), 2)})
    refused(path, "reaches element 3 of a storage of 3")
    write_legacy(path, {"a": Tensor(Storage(SIX, view=("part", 4, 3)), (2,), (1,))})
    refused(path, "elements 4 to 4")


HOSTILE = {
    "offset": (Tensor(None, (3,), (1,), 4), "reaches element 6 of a storage of 6"),
    "size": (Tensor(None, (7,), (1,)), "reaches element 6 of a storage of 6"),
    "stride": (Tensor(None, (2, 2), (5, 1 << 40)), "reaches element 1099511627781"),
    "negative offset": (Tensor(None, (2,), (1,), -1), "from -1 on"),
    "negative stride": (Tensor(None, (2,), (-1,), 3), r"with stride \(-1,\)"),
    "negative size": (Tensor(None, (-2,), (1,)), r"a tensor of size \(-2,\)"),
    "fraction": (Tensor(None, (1.5,), (1,)), r"a tensor of size \(1.5,\)"),
    "text": (Tensor(None, ("2",), (1,)), r"a tensor of size \('2',\)"),
    "overflow": (Tensor(None, (1 << 63,), (0,)), "a tensor of size"),
    "wraps to 0": (Tensor(None, (1 << 32, 1 << 32), (0, 0)), "far larger than the file"),
    "expanded": (Tensor(None, (1 << 40,), (0,)), "far larger than the file"),
    "empty": (Tensor(None, (0, 1 << 61), (1, 1)), r"truncated or damaged"),
    "dimensions": (Tensor(None, (1,) * 65, (1,) * 65), "65 dimensions"),
    "unequal": (Tensor(None, (2, 3), (1,)), "2 dimensions with 1 strides"),
    "metadata": (Tensor(None, (2,), (1,), more=(False, {}, {"neg": True})), "would execute code"),
    "no storage": (Tensor("storage", (2,), (1,)), "without a storage"),
    "larger storage": (Tensor(Storage(SIX, stated=7), (2,), (1,)), r"instead of"),
    "smaller storage": (Tensor(Storage(SIX, stated=5), (2,), (1,)), r"instead of"),
    "huge storage": (Tensor(Storage(SIX, stated=1 << 40), (2,), (1,)), "larger than the file"),
    "negative storage": (Tensor(Storage(SIX, stated=-6), (2,), (1,)), "a storage of -6 elements"),
    "complex": (Tensor(Storage(SIX, "ComplexFloatStorage"), (2,), (1,)), "torch.ComplexFloat"),
    "parameter": (
        Call(Name("torch._utils", "_rebuild_parameter"), (3, True, {})),
        "a parameter without a tensor",
    ),
    "a changed tensor": (
        Call(Name("torch._utils", "_rebuild_tensor"), (Storage(SIX), 0, (2,), (1,)),
             (None, {"offset": 1 << 40})),
        "a change of an array",
    ),
    "a changed function": (
        Call(Name("torch._utils", "_rebuild_parameter"), (), {"_function": 1}), "damaged",
    ),
}  # fmt: skip


@both_formats
@pytest.mark.parametrize("attack", HOSTILE)
def test_numbers_of_a_file_are_not_trusted(path, write, attack):
    wrong, message = HOSTILE[attack]
    if isinstance(wrong, Tensor) and wrong.storage is None:
        wrong.storage = Storage(SIX)
    write(path, {"good": tensor(SIX), "wrong": wrong})
    refused(path, message)


CODE = {
    "posix.system": Call(Name("posix", "system"), ("touch {}",)),
    "builtins.eval": Call(Name("builtins", "eval"), ("open('{}', 'w')",)),
    "torch.load": Call(Name("torch", "load"), ("{}",)),
    "torch.nn.modules.conv.Conv2d": Name("torch.nn.modules.conv", "Conv2d"),
    "torch._utils._rebuild_sparse_tensor": Name("torch._utils", "_rebuild_sparse_tensor"),
    "torch.FloatStorage.__class__": Name("torch", "FloatStorage.__class__"),
}


@both_formats
@pytest.mark.parametrize("name", CODE)
def test_code_is_refused_and_not_run(path, write, name):
    call = CODE[name]
    if isinstance(call, Call):
        call = Call(call.name, tuple(each.format(path.parent / "mark") for each in call.arguments))
    write(path, {"a": tensor(SIX), "b": call})
    name = re.escape(name)
    refused(path, rf"more than weights \({name}\) and would execute code; save only model\.state")
    assert list(path.parent.iterdir()) == [path]


STATES = {
    "items": b"(X\x01\x00\x00\x00aK\x01u",
    "attributes": pickle.dumps({"__defaults__": ("a",), "_function": 1}, 2)[2:-1] + b"b",
    "slots": pickle.dumps((None, {"_function": 1, "_name": "x"}), 2)[2:-1] + b"b",
}


@pytest.mark.parametrize("state", STATES)
def test_a_file_changes_nothing_that_it_may_name(path, state):
    path.touch()
    with path.open("rb") as file:
        names = list(torch_files._Reader(file)._admitted)
    assert len(names) == 15
    for module, name in names:
        path.write_bytes(legacy_of(f"c{module}\n{name}\n".encode() + STATES[state] + b"."))
        refused(path, "would execute code|is truncated or damaged")


@both_formats
def test_a_file_that_ends_early_is_one_line(path, write):
    write(path, {"a": tensor(SIX), "b": tensor(SIX.astype(np.int64), "LongStorage")})
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, r"is truncated or damaged \(.+\); download")


@both_formats
def test_changed_bytes_crash_nothing(path, write):
    write(path, {"a": tensor(SIX), "b": tensor(SIX.astype(np.int64), "LongStorage")})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(100):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert all(value.size <= 100 for value in read_arrays(path).values())
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert "\n" not in "".join(errors)


def test_records_that_share_their_bytes_are_no_bomb(path):
    tensors = {f"t{i}": tensor(np.zeros(1000, np.float32)) for i in range(50)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(tensors)[0])
        archive.writestr("archive/data/0", bytes(4000))
        first = archive.getinfo("archive/data/0")
        for key in range(1, 50):  # all entries at one place of the file
            other = zipfile.ZipInfo(f"archive/data/{key}")
            other.header_offset, other.CRC = first.header_offset, first.CRC
            other.file_size = other.compress_size = 4000
            archive.filelist.append(other)
    refused(path, "the storages are larger than the file")


def test_a_compressed_or_missing_record_is_one_line(path):
    write_zip(path, {"a": tensor(SIX)}, compression=zipfile.ZIP_DEFLATED)
    refused(path, r"record data\.pkl is compressed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps({"a": tensor(SIX)})[0])
    refused(path, "record data/0 is missing")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "truncated or damaged")


def test_a_missing_storage_is_one_line(path):
    data, _ = dumps({"a": tensor(SIX)}, views=True)
    path.write_bytes(legacy_of(data))
    refused(path, "a tensor has no storage")


def test_other_formats_of_torch_are_named(path):
    code = [("archive/constants.pkl", b""), ("archive/code/a.py", "")]
    write_zip(path, {"a": tensor(SIX)}, more=code)
    refused(path, "is a TorchScript archive, which contains code; save only model.state_dict")
    path.write_bytes(b"sys_info".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"))
    refused(path, r"tar format of torch 0\.1, which is not supported; load it with torch\.load")
    path.write_bytes(pickle.dumps({"a": SIX}))
    refused(path, "torch.save did not write it")


def test_memory_is_that_of_the_file(path):
    count = 1 << 20
    for write in WRITERS:
        write(path, {f"t{i}": tensor(np.ones(count, np.float32)) for i in range(4)})
        size = path.stat().st_size
        tracemalloc.start()
        try:
            arrays = read_arrays(path)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sum(value.nbytes for value in arrays.values()) == 16 * count
        assert most < 1.1 * size


def test_nothing_heavy_is_imported(path):
    write_zip(path, {"a": tensor(SIX)})
    code = (
        "import sys; from retina_jax.interop.files import read_arrays; "
        f"total = read_arrays({str(path)!r})['a'].sum(); "
        "print(total, [name for name in ('torch', 'jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "15.0 []\n"
