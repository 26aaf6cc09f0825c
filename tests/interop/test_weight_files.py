"""Files of arrays: every damage is one line, and nothing in a file is run."""

import functools
import os
import pickle
import re
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch_formats

from retina_jax.errors import UserError
from retina_jax.interop import pickles
from retina_jax.interop.files import NOTE, read_arrays, read_file, write_arrays

ARRAYS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.bias": np.array([1.5, -0.0, 1e-40], np.float32),
    "count": np.array(7, np.int64),
}
SUFFIXES = (".safetensors", ".pth", ".pkl")


def written(tmp_path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    write_arrays(path, ARRAYS)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_come_back_bit_for_bit(tmp_path, suffix):
    found = read_arrays(written(tmp_path, suffix))
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_note_stands_beside_the_arrays(tmp_path, suffix):
    assert read_file(written(tmp_path, suffix)).note == {}
    write_arrays(tmp_path / f"noted{suffix}", ARRAYS, {"order": "size_major", "eps": 1e-5})
    arrays, note = read_file(tmp_path / f"noted{suffix}")
    assert arrays.keys() == ARRAYS.keys()
    assert note == {"order": "size_major", "eps": 1e-5}


def test_a_damaged_note_is_one_line(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": ARRAYS, NOTE: '{"order": '}))
    with pytest.raises(UserError, match=r"weights\.pkl is truncated or damaged \(Expecting value"):
        read_arrays(tmp_path / "weights.pkl")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "text",
    ["<!DOCTYPE html>\n<html>", "version https://git-lfs.github.com/spec/v1\n", "hello there\n"],
)
def test_a_text_in_place_of_weights_is_shown(tmp_path, suffix, text):
    (tmp_path / f"weights{suffix}").write_text(text)
    start = re.escape(text.split()[0])
    with pytest.raises(
        UserError, match=rf"\(it is a text file that begins with '{start}"
    ) as caught:
        read_arrays(tmp_path / f"weights{suffix}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_cut_file_is_one_line(tmp_path, suffix, share):
    path = written(tmp_path, suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        UserError, match=r"weights\.\w+ is truncated or damaged \(.+\); download"
    ) as caught:
        read_arrays(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_a_file_is_never_left(tmp_path, suffix, monkeypatch):
    path = written(tmp_path, suffix)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_arrays(path, {"other": np.zeros(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_hold_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pkl: no such file"):
        read_arrays(tmp_path / "nowhere.pkl")
    with pytest.raises(UserError, match=r"cannot read '\.h5'; use one of \.safetensors, \.pth"):
        read_arrays(tmp_path / "weights.h5")
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"iteration": 3}))
    with pytest.raises(UserError, match="contains no named arrays, only the keys 'iteration'"):
        read_arrays(tmp_path / "weights.pkl")
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps([np.zeros(3)]))
    with pytest.raises(UserError, match="contains list, not a dict of arrays"):
        read_arrays(tmp_path / "weights.pkl")


def test_precisions_become_float32(tmp_path):
    values = {"half": np.float16([1.5]), "double": np.float64([0.1]), "count": np.int64([3])}
    write_arrays(tmp_path / "weights.safetensors", values)
    found = read_arrays(tmp_path / "weights.safetensors")
    assert {k: v.dtype.name for k, v in found.items()} == {
        "half": "float32",
        "double": "float32",
        "count": "int64",
    }


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state", "blobs"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper):
    arrays = {f"module.{name}": value for name, value in ARRAYS.items()}
    content = {wrapper: OrderedDict(arrays), "iteration": 90_000, "__author__": "someone"}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    assert read_arrays(tmp_path / "weights.pkl").keys() == ARRAYS.keys()


class Command:
    def __init__(self, function, *arguments):
        self._reduced = function, arguments

    def __reduce__(self):
        return self._reduced


ATTACKS = {
    "system": (lambda mark: Command(os.system, f"touch {mark}"), r"contains posix\.system"),
    "eval": (lambda mark: Command(eval, f"open('{mark}', 'w')"), r"contains \w+\.eval"),
    "getattr": (lambda mark: Command(getattr, "text", "format"), r"contains \w+\.getattr"),
    "numpy": (lambda mark: Command(np.load, str(mark)), r"contains numpy"),
    "objects": (lambda mark: np.array([Command(open, str(mark), "w")], object), r"contains dtype"),
    "pointer": (lambda mark: Command(np.ndarray, (1,), "O", b"A" * 8), "is truncated or damaged"),
    "dtype": (lambda mark: Command(np.dtype, "O"), "contains dtype 'O'"),
    "size": (
        lambda mark: Command(np._core.multiarray.scalar, np.dtype("f4"), 1 << 40),
        "contains an array of int",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, attack, protocol):
    attacker, message = ATTACKS[attack]
    mark = tmp_path / "mark"
    content = {**ARRAYS, "extra": attacker(mark)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=message):
        read_arrays(tmp_path / "weights.pkl")
    assert not mark.exists()


def stated(module, name, state):
    """A pickle that gives ``state`` to what ``module.name`` stands for: BUILD."""
    return f"c{module}\n{name}\n".encode() + pickle.dumps(state, 2)[2:-1] + b"b."


STATES = {
    "items": b"(X\x01\x00\x00\x00aK\x01u",  # SETITEMS
    "attributes": pickle.dumps({"__defaults__": ("a",), "_function": 1}, 2)[2:-1] + b"b",  # BUILD
    "defaults": pickle.dumps((None, {"__defaults__": ("a",)}), 2)[2:-1] + b"b",
    "function": pickle.dumps((None, {"_function": 1}), 2)[2:-1] + b"b",
    "functools.partial": pickle.dumps((1, (), {}, {}), 2)[2:-1] + b"b",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", pickles._ADMITTED)
def test_a_file_changes_nothing_that_it_may_call(tmp_path, name, state):
    path = tmp_path / "weights.pkl"
    path.write_bytes("c{}\n{}\n".format(*name).encode() + STATES[state] + b".")
    with pytest.raises(
        UserError, match=r"weights\.pkl (contains|is truncated or damaged)"
    ) as caught:
        read_arrays(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(OrderedDict(ARRAYS), 2))  # is read as before
    assert read_arrays(path)["a.bias"].tobytes() == ARRAYS["a.bias"].tobytes()
    assert pickles._encode_latin1.__defaults__ == ("", "latin1")


def test_attributes_of_a_state_dict_are_left_out(tmp_path):
    arrays = OrderedDict(ARRAYS)
    arrays._metadata = OrderedDict(version=1)
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(arrays))
    assert read_arrays(tmp_path / "weights.pkl").keys() == ARRAYS.keys()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_all_protocols_are_read(tmp_path, protocol):
    by_columns = np.asfortranarray(ARRAYS["a.weight"])
    content = {"a": by_columns, "b": by_columns.astype(">f4"), "c": np.float32(2), "d": "text"}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_arrays(tmp_path / "weights.pkl")
    assert found.keys() == {"a", "b"}
    for value in found.values():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, ARRAYS["a.weight"])


# what Python 2.7 with NumPy 1 wrote for {'conv1_w': np.float32([[1.5, -2.0]])}
PYTHON_2 = {
    2: (
        b"\x80\x02}q\x01U\x07conv1_wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\n"
        b"ndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02f4K"
        b"\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        b"\x00\x00\xc0?\x00\x00\x00\xc0tbs."
    ),
    0: (
        b"(dp0\nS'conv1_w'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n"
        b"(I0\ntp4\nS'b'\np5\ntp6\nRp7\n(I1\n(I1\nI2\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\n"
        b"I1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\n"
        b"S'\\x00\\x00\\xc0?\\x00\\x00\\x00\\xc0'\np15\ntp16\nbs."
    ),
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_pickles_of_python_2_are_read(tmp_path, protocol):
    (tmp_path / "weights.pkl").write_bytes(PYTHON_2[protocol])
    found = read_arrays(tmp_path / "weights.pkl")
    np.testing.assert_array_equal(found["conv1_w"], np.float32([[1.5, -2.0]]))


def test_pickles_are_written_for_numpy_1(tmp_path):
    write_arrays(tmp_path / "weights.pkl", ARRAYS)
    data = (tmp_path / "weights.pkl").read_bytes()
    assert b"numpy._core" not in data
    assert pickle.loads(data)["__author__"] == "retina_jax"


def test_only_writing_pth_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"writing it needs torch.* pip install torch, or use"):
        write_arrays(tmp_path / "weights.pth", ARRAYS)
    assert list(tmp_path.iterdir()) == []


BOMBS = {
    "memo": (b"\x80\x02Nr\xff\xff\xff\xff.", "memo index 4294967295"),
    "doubled": (
        pickle.dumps(functools.reduce(lambda inner, _: {"a": inner, "b": inner}, range(200), {})),
        "contains no named arrays",
    ),
    "itself": (b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.", "maximum recursion depth"),
}


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_few_bytes_use_neither_much_memory_nor_time(tmp_path, bomb, suffix):
    content, message = BOMBS[bomb]
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        content = torch_formats.legacy_of(content)
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_arrays(path)


@pytest.mark.parametrize("write", torch_formats.WRITERS)
def test_a_torch_file_named_pkl_is_told_apart(tmp_path, write):
    write(tmp_path / "weights.pkl", {"a": torch_formats.tensor(ARRAYS["a.bias"])})
    with pytest.raises(UserError, match="rename it to"):
        read_arrays(tmp_path / "weights.pkl")
