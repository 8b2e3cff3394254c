"""Kernels on disk: the same bits come back, and only for the same kernel."""

import sys
from unittest.mock import patch

import pytest
import torch
from conftest import inputs, mlp
from safetensors.torch import save_file

import nntk
from nntk.files import fingerprint, storage


def make_kernel(**settings):
    """Build a kernel of the same model, whatever its settings."""
    return nntk.NonlocalNTK(mlp(3, 8, 2), **{"samples": 16, **settings})


def centred(x, rows):
    """Score all displacements equally, as a custom score."""
    return torch.zeros(len(rows), len(x))


def test_what_was_saved_comes_back(tmp_path):
    """Matrices, differences and inputs, bit for bit; a budget of memory changes no number."""
    kernel, x, path = make_kernel(), inputs(5, 3), tmp_path / "deep" / "k.safetensors"
    results = {"K": kernel(x), "D": kernel.differences(x), "x": x, "K_t": kernel(x, inputs(2, 3)).T}
    nntk.save(path, kernel, results)
    loaded = nntk.load(path, make_kernel(max_memory=2**22))
    assert loaded.keys() == results.keys() and all(torch.equal(loaded[name], results[name]) for name in results)
    assert [file.name for file in path.parent.iterdir()] == ["k.safetensors"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.2}, "gamma is 0.1 there and 0.2 here"),
        ({"seed": 1, "samples": 17}, "samples is 16 there and 17 here; seed is 0 there and 1 here"),
        ({"weights": nntk.FixedKernel("cauchy")}, "weights is .*gaussian.* there and .*cauchy.* here"),
        ({"weights": nntk.Attention(score=centred)}, r"weights is .* there and .*test_storage.centred.* here"),
        (
            {"weights": nntk.Attention(on="parameters", projection=(torch.ones(1, 50), torch.zeros(1, 50)))},
            r"weights is .* there and .*'parameters', 'dot', 1.0, None, '[0-9a-f]{64}'.* here",
        ),
        ({"parameters": ["0.*"]}, r"'2.bias'\] there and \['0.weight', '0.bias'\] here"),
    ],
)
def test_another_kernel_is_refused(tmp_path, settings, message):
    """The message names what differs."""
    nntk.save(tmp_path / "k", make_kernel(), {"K": torch.ones(2)})
    with pytest.raises(nntk.files.storage.MismatchError, match=message):
        nntk.load(tmp_path / "k", make_kernel(**settings))


def test_another_model_or_stream_is_refused(tmp_path, monkeypatch):
    """The weight was trained on, the stream has another version, or the file holds something else."""
    kernel = make_kernel()
    nntk.save(tmp_path / "k", kernel, {"K": torch.ones(2)})
    with torch.no_grad():
        kernel.model[0].weight[0, 0] += 1e-3
    with pytest.raises(storage.MismatchError, match="is of another kernel: model is"):
        nntk.load(tmp_path / "k", kernel)
    frozen = make_kernel()
    frozen.model[2].requires_grad_(False)
    with pytest.raises(storage.MismatchError, match=r"parameters is .* there and \['0.weight', '0.bias'\] here"):
        nntk.load(tmp_path / "k", frozen)
    monkeypatch.setattr(fingerprint, "STREAM_VERSION", 99)
    with pytest.raises(storage.MismatchError, match="stream_version is 1 there and 99 here"):
        nntk.load(tmp_path / "k", make_kernel())
    save_file({"K": torch.ones(2)}, tmp_path / "other")
    (tmp_path / "text").write_text("no safetensors")
    for name in ("other", "text"):
        with pytest.raises(storage.MismatchError, match=f"{name} must be a file that nntk.save wrote"):
            nntk.load(tmp_path / name, make_kernel())


def test_functions_and_black_boxes_are_told_apart(tmp_path):
    """The fingerprint holds their parameters."""
    for first, second in (
        ({"model": lambda p, x: x @ p["a"], "parameters": {"a": torch.ones(3, 1)}}, {"a": torch.zeros(3, 1)}),
        (
            {"model": nntk.BlackBox(lambda t, x: x @ t, torch.ones(3))},
            nntk.BlackBox(lambda t, x: x @ t, torch.zeros(3)),
        ),
    ):
        kernel = nntk.NonlocalNTK(samples=4, **first)
        nntk.save(tmp_path / "k", kernel, {"K": kernel(inputs(2, 3))})
        assert torch.equal(nntk.load(tmp_path / "k", kernel)["K"], kernel(inputs(2, 3)))
        other = {**first, "parameters": second} if isinstance(second, dict) else {"model": second}
        with pytest.raises(storage.MismatchError, match="model is"):
            nntk.load(tmp_path / "k", nntk.NonlocalNTK(samples=4, **other))


@pytest.mark.parametrize(
    "name", [*"bool uint8 int8 int16 int32 int64 uint16 float16 bfloat16 float32 float64 complex64".split()]
)
def test_tensors_of_every_dtype_and_shape_come_back(tmp_path, name):
    """Also empty ones, and those without axes."""
    dtype = getattr(torch, name)
    tensors = {str(shape): torch.ones(shape).to(dtype) for shape in ((2, 3), (3,), (), (0,), (2, 0, 3))}
    nntk.save(tmp_path / "k", make_kernel(), tensors)
    loaded = nntk.load(tmp_path / "k", make_kernel())
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == dtype for key, value in tensors.items())


def test_views_are_kept_as_tensors_of_their_own(tmp_path):
    """Parts of one another, transposed, expanded, strided, conjugate, overlapping, and the same tensor twice."""
    x, z = torch.randn(6, 4), torch.randn(3, dtype=torch.complex64)
    tensors = {
        "x": x, "again": x, "first": x[:3], "last": x[3:], "columns": x[:, ::2], "transposed": x.T, "one": x[0, 0],
        "expanded": x[:1].expand(5, 4), "windows": x.unfold(0, 3, 1), "empty": x[:0], "conjugate": z.conj(),
        "imaginary": z.conj().imag, "parameter": torch.nn.Parameter(x)[1:], "graph": x.requires_grad_() * 2,
    }  # fmt: skip
    nntk.save(tmp_path / "k", make_kernel(), tensors)
    loaded = nntk.load(tmp_path / "k", make_kernel())
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor.detach()) for name, tensor in tensors.items())
    assert (tmp_path / "k").stat().st_size < 10_000  # The part of a large tensor is kept without the rest.


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (2, r"k was written by an earlier version of nntk, .* \(schema 2, not 3\). Save it again, or read the tensors"),
        (4, r"k was written by another version of nntk \(schema 4, not 3\)"),
        ("x", r"k was written by another version of nntk \(schema 'x', not 3\)"),
    ],
)
def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch, schema, message):
    """The message says so, and what to do."""
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "SCHEMA", schema)
        nntk.save(tmp_path / "k", make_kernel(), {"K": torch.ones(2)})
    with pytest.raises(storage.MismatchError, match=message):
        nntk.load(tmp_path / "k", make_kernel())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_metadata_that_describe_no_kernel_are_refused(tmp_path, text):
    """Another program wrote them, or they are broken."""
    save_file({"K": torch.ones(2)}, tmp_path / "k", {"nntk": text})
    with pytest.raises(storage.MismatchError, match="k must be a file that nntk.save wrote; its metadata describe no"):
        nntk.load(tmp_path / "k", make_kernel())


def test_a_file_that_was_cut_is_refused(tmp_path):
    """At any length."""
    nntk.save(tmp_path / "k", make_kernel(), {"K": torch.ones(2)})
    whole = (tmp_path / "k").read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "k").write_bytes(whole[:length])
        with pytest.raises(storage.MismatchError, match="k must be a file that nntk.save wrote, but is no safetensors"):
            nntk.load(tmp_path / "k", make_kernel())


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({3: torch.ones(1)}, TypeError, r"tensors must have texts as names, got 3 \(int\)"),
        ({"__metadata__": torch.ones(1)}, ValueError, "tensors must not be named '__metadata__'"),
        ({"K": torch.ones(1, device="meta")}, ValueError, "K must hold numbers, but is on the meta device"),
        ({"K": torch.ones(1, dtype=torch.complex128)}, TypeError, "K must be .* got torch.complex128; use torch.view"),
        ({"K": torch.eye(2).to_sparse()}, TypeError, "K must be a dense tensor"),
    ],
)
def test_tensors_that_cannot_be_kept_are_errors(tmp_path, tensors, error, message):
    """The error comes before anything is written."""
    with pytest.raises(error, match=message):
        nntk.save(tmp_path / "k", make_kernel(), tensors)
    assert not list(tmp_path.iterdir())


def test_nothing_and_no_tensors_are_errors(tmp_path):
    """The error comes before anything is written."""
    with pytest.raises(ValueError, match="tensors must hold something"):
        nntk.save(tmp_path / "k", make_kernel(), {})
    with pytest.raises(TypeError, match=r"K must be a torch.Tensor"):
        nntk.save(tmp_path / "k", make_kernel(), {"K": [1.0]})
    with pytest.raises(TypeError, match=r"tensors must map names to tensors, .* got Tensor"):
        nntk.save(tmp_path / "k", make_kernel(), torch.ones(2, 2))
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_is_an_error(tmp_path):
    """The file is absent, a folder stands in its place, or a file in the place of its folder."""
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileNotFoundError, match="absent"):
        nntk.load(tmp_path / "absent", make_kernel())
    for name in ("file/k", "taken"):
        with pytest.raises(OSError, match=name.partition("/")[0]):
            nntk.save(tmp_path / name, make_kernel(), {"K": torch.ones(2)})


def test_without_safetensors_the_message_says_what_to_install(tmp_path):
    """Reading and writing both name the extra."""
    with patch.dict(sys.modules, {"safetensors.torch": None}):
        with pytest.raises(ImportError, match=r"nntk.save needs safetensors: pip install 'nntk\[store\]'"):
            nntk.save(tmp_path / "k", make_kernel(), {"K": torch.ones(2)})
        with pytest.raises(ImportError, match=r"nntk.load needs safetensors: pip install 'nntk\[store\]'"):
            nntk.load(tmp_path / "k", make_kernel())
