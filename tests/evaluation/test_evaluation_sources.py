"""Arrays and files as features."""

import builtins
import mmap
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hyperkern as hk
from hyperkern.evaluation import open_features
from hyperkern.evaluation.sources import ArraySource, TensorSource, as_source

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are not of unit length")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROWS = torch.randn(37, 5, dtype=torch.float64)
LITTLE = sys.byteorder == "little"


def check(source, expected: torch.Tensor) -> None:
    """It has these rows, and they are evaluated."""
    assert (source.rows, source.dim, source.dtype) == (*expected.shape, expected.dtype)
    assert torch.equal(source.read(0, 37), expected)
    assert torch.equal(source.read(30, 37), expected[30:])
    index = torch.tensor([0, 3, 36])
    assert torch.equal(source.take(index), expected[index])
    result = hk.evaluate(source, block_rows=10, device="cpu")
    assert result.uniformity == pytest.approx(hk.uniformity(expected).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors(dtype: torch.dtype) -> None:
    check(as_source("x", ROWS.to(dtype)), ROWS.to(dtype))
    strided = ROWS.to(dtype).repeat_interleave(2, 0).T.contiguous().T[::2]
    check(TensorSource("x", strided), ROWS.to(dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays(dtype: str, order: str) -> None:
    array = ROWS.numpy().astype(np.dtype(dtype).newbyteorder(order))
    check(as_source("x", array), ROWS.to(getattr(torch, dtype)))
    check(as_source("x", np.asfortranarray(array)), ROWS.to(getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_npy_file(dtype: str, tmp_path: Path) -> None:
    for name, array in {"c": ROWS.numpy(), "fortran": np.asfortranarray(ROWS.numpy())}.items():
        np.save(tmp_path / f"{name}.npy", array.astype(dtype))
        check(open_features(tmp_path / f"{name}.npy"), ROWS.to(getattr(torch, dtype)))


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages cannot be given back here")
def test_pages_of_a_mapped_file_are_given_back_but_never_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, ROWS.numpy())
    for mode, given_back in (("r", True), ("r+", False), ("c", False)):
        array = np.load(path, mmap_mode=mode)
        if mode == "c":
            array[0] = 7
        for part in (array, array[3:]):
            source = ArraySource("x", part)
            assert (source._mapping is not None) == given_back
            assert torch.equal(source.read(0, 5), torch.from_numpy(part[:5].copy()))
        if mode == "c":
            assert (array[0] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_file(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = ROWS.to(dtype)
    path = tmp_path / "x.pt"
    torch.save(rows, path)
    check(open_features(path), rows)
    torch.save({"only": rows, "epoch": 3}, path)
    check(open_features(path), rows)
    torch.save({"epoch": 3, "bank": {"a": rows, "b": rows[:1]}}, path)
    source = open_features(path, key="bank.a")
    assert source.name == f"{path}[bank.a]"
    check(source, rows)
    module = torch.nn.Module()
    module.register_buffer("buffer", rows)
    torch.save(module.state_dict(), tmp_path / "x.pth")
    check(open_features(tmp_path / "x.pth", key="buffer"), rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_file(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    rows = ROWS.to(dtype)
    path = tmp_path / "x.safetensors"
    save_file({"only": rows}, path)
    check(open_features(path), rows)
    save_file({"a": rows, "b": rows[:1].clone(), "n": torch.arange(6).view(2, 3)}, path)
    check(open_features(path, key="a"), rows)
    with pytest.raises(ValueError, match=r"holds 3 tensors, choose one by its key: .*a \(37, 5\)"):
        open_features(path)
    with pytest.raises(ValueError, match="holds no tensor of key 'c'"):
        open_features(path, key="c")
    with pytest.raises(TypeError, match=r"x.safetensors\[n\] must be float64, .* features, got I64"):
        open_features(path, key="n")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x.safetensors cannot be read as a .safetensors file"):
        open_features(path)


@pytest.mark.parametrize("content", [{"a.b": ROWS, "a": {"b": ROWS}}, {1: ROWS, "1": ROWS}], ids=["a.b", "1"])
def test_two_tensors_of_one_name(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    name = "a.b" if "a" in content else "1"
    with pytest.raises(ValueError, match=f"x.pt .*two tensors that would both be called '{name}'"):
        open_features(tmp_path / "x.pt")


@pytest.mark.parametrize(("package", "suffix"), [("safetensors", ".safetensors"), ("numpy", ".npy")])
def test_missing_package_is_named(package: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    if package == "safetensors":
        monkeypatch.setitem(sys.modules, package, None)
    else:
        original = builtins.__import__

        def without(name, *args, **kwargs):
            if name == package:
                raise ImportError(name)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"a {suffix} file needs .*install with: pip install {package}"):
        open_features(path)


class Unsafe:
    def __reduce__(self):
        return print, ("run by the file",)


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    with pytest.raises(FileNotFoundError, match=r"absent.npy does not exist"):
        open_features(tmp_path / "absent.npy")
    with pytest.raises(ValueError, match=r"x.csv must end in .npy, .pt, .pth, .safetensors, got suffix '.csv'"):
        open_features(write("x.csv", b"1,2"))
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"folder.npy is no file"):
        open_features(tmp_path / "folder.npy")
    other = r"\(it does not begin as one, it may be "
    for content, reason in (
        (b"", r"\(it is empty\)"),
        (b"0.1 0.2\n0.3 0.4\n", other),
        (pickle.dumps({"x": [0.1, 0.2]}), other),
        (b"PK\x03\x04 and no more", r"\(.*archive"),
    ):
        with pytest.raises(ValueError, match=r"x.npy cannot be read as a .npy file " + reason):
            open_features(write("x.npy", content))
        with pytest.raises(ValueError, match=r"x.pt cannot be read as tensors saved by torch.save " + reason):
            open_features(write("x.pt", content))
    np.save(tmp_path / "objects.npy", np.array([Unsafe()]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects.npy cannot be read .*Python objects"):
        open_features(tmp_path / "objects.npy")
    torch.save(Unsafe(), tmp_path / "unsafe.pt")
    with pytest.raises(ValueError, match=r"unsafe.pt cannot be read .*\(it holds more than tensors"):
        open_features(tmp_path / "unsafe.pt")
    assert "run by the file" not in capsys.readouterr().out
    np.savez(tmp_path / "archive.npz", a=ROWS.numpy())
    with pytest.raises(ValueError, match="it is an archive of arrays"):
        open_features((tmp_path / "archive.npz").rename(tmp_path / "archive.npy"))
    torch.save(ROWS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old.pt cannot be read .*_use_new_zipfile_serialization"):
        open_features(tmp_path / "old.pt")


def test_keys(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS.numpy())
    torch.save(ROWS, tmp_path / "x.pt")
    for name in ("x.npy", "x.pt"):
        with pytest.raises(ValueError, match=f"{name} holds one .* without a name, got key 'a'"):
            open_features(tmp_path / name, key="a")
    torch.save({f"t{i}": ROWS for i in range(10)}, tmp_path / "many.pt")
    with pytest.raises(ValueError, match=r"many.pt holds 10 tensors, choose one by its key: t0 \(37, 5\), .* 2 more"):
        open_features(tmp_path / "many.pt")
    with pytest.raises(ValueError, match=r"many.pt holds no tensor of key 't10', it has t0"):
        open_features(tmp_path / "many.pt", key="t10")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"none.pt holds no tensor"):
        open_features(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (np.zeros(5), ValueError, r"x.npy must have shape \(N, D\), got \(5,\)"),
        (np.zeros((2, 3, 4)), ValueError, r"x.npy must have shape \(N, D\), got \(2, 3, 4\)"),
        (np.zeros((5, 3), np.int64), TypeError, "x.npy must be float64, .*, got int64"),
        (np.zeros((0, 3)), ValueError, r"x.npy must not be empty, got shape \(0, 3\)"),
    ],
)
def test_arrays_that_are_no_features(array: np.ndarray, error: type[Exception], text: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(error, match=text):
        open_features(tmp_path / "x.npy")


@pytest.mark.parametrize("method", ["exact", "estimate"])
def test_tensors_of_inference_mode(method: str) -> None:
    options = {"method": method, "columns": 16, "device": "cpu"}
    with torch.inference_mode():
        made_there = ROWS.clone()
        weights = torch.ones(37)
        inside = hk.evaluate(ROWS, made_there, weights=weights, **options)
    outside = hk.evaluate(made_there, ROWS, weights=weights, **options)
    assert inside.uniformity == outside.uniformity
    assert hk.evaluate(ROWS, ROWS, **options).uniformity == pytest.approx(outside.uniformity, rel=1e-12)


NO_VALUES = {
    "meta": (ROWS[:, 0].to("meta"), ROWS.to("meta"), "must hold values, got a tensor on the meta device"),
    "nested": (*[torch.nested.nested_tensor([ROWS[0], ROWS[1]])] * 2, "must be a dense tensor, got a nested one"),
    "jagged": (
        *[torch.nested.nested_tensor([ROWS[:9], ROWS[9:]], layout=torch.jagged)] * 2,
        "must be a dense tensor, got a nested one",
    ),
    "sparse": (ROWS[:, 0].to_sparse(), ROWS.to_sparse(), "must be a dense tensor, got layout torch.sparse_coo"),
}


@pytest.mark.parametrize("kind", NO_VALUES)
def test_tensors_without_a_value_in_each_place(kind: str, tmp_path: Path) -> None:
    weights, features, text = NO_VALUES[kind]
    with pytest.raises(ValueError, match=f"^features {text}"):
        hk.evaluate(features)
    with pytest.raises(ValueError, match=f"^positives {text}"):
        hk.evaluate(ROWS, features)
    with pytest.raises(ValueError, match=f"^weights {text}"):
        hk.evaluate(ROWS, weights=weights)
    if kind in ("meta", "sparse"):
        torch.save({"x": features}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=rf"x.pt\[x\] {text}"):
            open_features(tmp_path / "x.pt")


def test_masked_arrays() -> None:
    masked = np.ma.masked_array(ROWS.numpy(), mask=np.zeros(ROWS.shape))
    with pytest.raises(TypeError, match=r"^features must not be a masked array"):
        hk.evaluate(masked)
    with pytest.raises(TypeError, match=r"^positives must not be a masked array"):
        hk.evaluate(ROWS, masked)
    with pytest.raises(TypeError, match=r"^weights must not be a masked array"):
        hk.evaluate(ROWS, weights=masked[:, 0])


@pytest.mark.parametrize("weights", ["many", {"a": 1}, object(), np.ones(37).astype(">f8" if LITTLE else "<f8")])
def test_weights_that_are_none(weights: object) -> None:
    with pytest.raises(TypeError, match=r"^weights must be a tensor or an array"):
        hk.evaluate(ROWS, weights=weights)


@pytest.mark.filterwarnings("ignore:the standard error")
@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_the_outermost_seeds(seed: int) -> None:
    assert hk.evaluate(ROWS, method="estimate", columns=16, seed=seed, device="cpu").seed == seed


@pytest.mark.parametrize(
    ("seed", "error", "text"),
    [
        (2**64, ValueError, f"seed must be at most {2**64 - 1}, got {2**64}"),
        (-(2**63) - 1, ValueError, f"seed must be at least {-(2**63)}, got {-(2**63) - 1}"),
        (1.5, TypeError, "seed must be an integer, got float"),
        (None, TypeError, "seed must be an integer, got NoneType"),
        (True, TypeError, "seed must be an integer, got bool"),
    ],
)
def test_absurd_seeds(seed: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        hk.evaluate(ROWS, seed=seed)


@pytest.mark.parametrize(
    "device", ["mps:7", "xpu:99", "vulkan", "hpu", "xla", "mkldnn", "opengl", "cuda:99", torch.device("vulkan")]
)
def test_devices_that_are_not_here(device: str | torch.device) -> None:
    with pytest.raises(ValueError, match=f"^device {device} is not here: "):
        hk.evaluate(ROWS, device=device)


@pytest.mark.parametrize("device", ["abacus", "", "cuda:-1", 3.5, True])
def test_what_names_no_device(device: object) -> None:
    with pytest.raises(ValueError, match=f"^device must be the name of a device such as cpu or cuda, got {device!r}$"):
        hk.evaluate(ROWS, device=device)
