"""Data from real files, three splits that never mix, and batches that a resumed run repeats."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datafiles import write_idx
from PIL import Image

from autospace.data import DATASETS, Data, Split, check_data_name, load_data
from autospace.seeding import Seed
from devices.errors import InvalidInputError, UsageError


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", resolution=16)


def _pixels(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split.images.take(np.arange(len(split)))]


def _cifar(folder: Path, classes: int, count: int = 12) -> Path:
    """CIFAR's binary files with a few records."""
    folder.mkdir(exist_ok=True)
    names = (
        [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        if classes == 10
        else ["train.bin", "test.bin"]
    )
    random = np.random.default_rng(0)
    for name in names:
        rows = random.integers(0, 256, (count, 3072), np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)[:, None]
        coarse = [np.full((count, 1), 19, np.uint8)] if classes == 100 else []
        (folder / name).write_bytes(np.concatenate([*coarse, labels, rows], 1).tobytes())
    return folder


def _images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (20, 14)) -> Path:
    """A folder of images, a colour a class, each image a little different."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (80 * number, 200 - 60 * number, 5 * index)
            Image.new("RGB", size, colour).save(folder / name / f"{index}.png")
    return folder


# -- digits ----------------------------------------------------------------------------------------


def test_digits_need_no_files(digits: Data) -> None:
    assert (digits.num_classes, digits.channels, digits.resolution) == (10, 1, 16)
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797
    assert "1199/239/359 images (train/validation/test)" in digits.description


def test_splits_are_disjoint_and_hold_every_class(digits: Data) -> None:
    parts = [digits.train, digits.validation, digits.test]
    rows = [part.images._indices for part in parts]  # type: ignore[attr-defined]
    # Training and validation are parts of one part, so their indices are of that part.
    assert not set(rows[0]) & set(rows[1])
    outer = digits.train.images._images._indices  # type: ignore[attr-defined]
    assert not set(outer) & set(rows[2])
    assert len(outer) == len(rows[0]) + len(rows[1])
    for part in parts:
        counts = np.bincount(part.labels, minlength=10)
        assert counts.min() > 0.8 * counts.mean()


def test_the_split_depends_on_the_data_alone(digits: Data) -> None:
    again = load_data("digits", resolution=16)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(again, part).labels, getattr(digits, part).labels)
    assert _pixels(again.test) == _pixels(digits.test)


def test_images_are_normalised_and_channels_last(digits: Data) -> None:
    images, labels = digits.batch(digits.train, np.arange(len(digits.train)))
    assert images.shape == (len(digits.train), 1, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.mean().abs() < 1e-3
    assert images.std() == pytest.approx(1, abs=1e-2)
    assert labels.dtype == torch.int64


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_depends_on_step_and_seed_only(digits: Data) -> None:
    def batch(step: int, root: int) -> torch.Tensor:
        return digits.training_batch(digits.train, 32, step, Seed(root))[0]

    first = batch(7, 0)
    for step in (0, 3, 100):
        batch(step, 0)
    assert torch.equal(batch(7, 0), first)
    assert not torch.equal(batch(8, 0), first)
    assert not torch.equal(batch(7, 1), first)


def test_an_epoch_visits_every_image_at_most_once(digits: Data) -> None:
    per_epoch = len(digits.validation) // 50
    seen: list[bytes] = []
    for step in range(per_epoch):
        images, _ = digits.training_batch(digits.validation, 50, step, Seed(0), augment=False)
        seen += [image.numpy().tobytes() for image in images]
    whole, _ = digits.batch(digits.validation, np.arange(len(digits.validation)))
    everything = [image.numpy().tobytes() for image in whole]
    assert len(seen) == 50 * per_epoch
    assert all(seen.count(image) <= everything.count(image) for image in seen)
    second = digits.training_batch(digits.validation, 50, per_epoch, Seed(0), augment=False)[0]
    assert [image.numpy().tobytes() for image in second] != seen[:50]


def test_a_batch_larger_than_the_split(digits: Data) -> None:
    images, _ = digits.training_batch(digits.validation, 10_000, 3, Seed(0))
    assert len(images) == len(digits.validation)


def test_batches_cover_the_split_in_order(digits: Data) -> None:
    labels = torch.cat([labels for _, labels in digits.batches(digits.test, 100)])
    assert labels.tolist() == digits.test.labels.tolist()


def test_augmentation_shifts_within_its_bound(digits: Data) -> None:
    indices = np.arange(20)
    plain = digits.batch(digits.train, indices)[0]
    moved = digits.batch(digits.train, indices, np.random.default_rng(0))[0]
    assert moved.shape == plain.shape
    assert not torch.equal(moved, plain)
    assert digits.shift == 1
    assert not digits.flip
    low = (0 - digits.mean[0]) / digits.std[0]
    padded = torch.nn.functional.pad(plain, (1, 1, 1, 1), value=low)
    for image, wide in zip(moved, padded, strict=True):
        windows = [wide[:, y : y + 16, x : x + 16] for y in range(3) for x in range(3)]
        assert any(torch.allclose(image, window, atol=1e-5) for window in windows)


def test_flips(tmp_path: Path) -> None:
    data = load_data("cifar10", _cifar(tmp_path / "cifar", 10))
    assert data.flip
    still = replace(data, shift=0)
    indices = np.arange(20)
    plain = still.batch(still.train, indices)[0]
    turned = still.batch(still.train, indices, np.random.default_rng(0))[0]
    flipped = [
        torch.equal(after, before.flip(2)) for after, before in zip(turned, plain, strict=True)
    ]
    kept = [torch.equal(after, before) for after, before in zip(turned, plain, strict=True)]
    assert any(flipped)
    assert any(kept)
    assert all(one != other for one, other in zip(flipped, kept, strict=True))


# -- files -----------------------------------------------------------------------------------------


def test_fashion_mnist_from_its_files(fashion_folder: Path) -> None:
    data = load_data("fashion-mnist", fashion_folder)
    assert (data.num_classes, data.channels, data.resolution) == (10, 1, 32)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [32, 8, 10]
    images = data.test.images.take(np.arange(10))
    # 28 pixels are padded to 32, not stretched; the bytes are those of the file.
    assert not images[:, :, :2].any()
    assert not images[..., -2:].any()
    raw = np.frombuffer((fashion_folder / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    np.testing.assert_array_equal(images[:, 0, 2:30, 2:30].ravel(), raw)
    np.testing.assert_array_equal(data.test.labels, np.arange(10) % 4)


def test_compressed_files_and_the_raw_folder(fashion_folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in fashion_folder.iterdir():
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    one, two = (
        load_data("fashion-mnist", fashion_folder),
        load_data("fashion-mnist", raw.parents[1]),
    )
    assert _pixels(one.train) == _pixels(two.train)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x00\x00\x0d\x01" + b"\x00" * 100)


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_cut, _empty, _foreign, _remove])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_idx_files(fashion_folder: Path, damage: Callable[[Path], None], name: str) -> None:
    damage(fashion_folder / name)
    with pytest.raises(InvalidInputError) as caught:
        load_data("fashion-mnist", fashion_folder)
    assert str(fashion_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_gzip_file(fashion_folder: Path) -> None:
    path = fashion_folder / "train-images-idx3-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_data("fashion-mnist", fashion_folder)


def test_files_that_do_not_match(fashion_folder: Path) -> None:
    write_idx(fashion_folder / "train-labels-idx1-ubyte", np.arange(7))
    with pytest.raises(InvalidInputError, match="40 images and 7 labels"):
        load_data("fashion-mnist", fashion_folder)


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_from_its_binary_files(tmp_path: Path, classes: int) -> None:
    folder = _cifar(tmp_path / "cifar", classes)
    data = load_data(f"cifar{classes}", folder)
    assert (data.num_classes, data.channels, data.resolution) == (classes, 3, 32)
    assert len(data.test) == 12
    # The fine label, then the pixels: red, green, blue planes.
    test = (folder / ("test_batch.bin" if classes == 10 else "test.bin")).read_bytes()
    rows = np.frombuffer(test, np.uint8).reshape(12, -1)
    np.testing.assert_array_equal(data.test.labels, np.arange(12) % 3)
    np.testing.assert_array_equal(
        data.test.images.take(np.arange(12)).reshape(12, -1), rows[:, -3072:]
    )


def test_cifar_in_the_folder_of_its_archive(tmp_path: Path) -> None:
    _cifar(tmp_path / "cifar-10-batches-bin", 10)
    assert len(load_data("cifar10", tmp_path).test) == 12


def test_damaged_cifar_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data-root"):
        load_data("cifar10")
    folder = _cifar(tmp_path / "cifar", 10)
    _cut(folder / "data_batch_3.bin")
    with pytest.raises(InvalidInputError, match="not a whole number of 3073-byte records"):
        load_data("cifar10", folder)
    _empty(folder / "data_batch_3.bin")
    with pytest.raises(InvalidInputError, match="not a whole number"):
        load_data("cifar10", folder)
    _remove(folder / "data_batch_3.bin")
    with pytest.raises(InvalidInputError, match="no such file; --data cifar10 reads the binary"):
        load_data("cifar10", folder)


@pytest.mark.parametrize(("classes", "label"), [(10, 10), (10, 255), (100, 100)])
def test_labels_that_the_data_set_does_not_have(tmp_path: Path, classes: int, label: int) -> None:
    folder = _cifar(tmp_path / "cifar", classes)
    path = folder / ("data_batch_2.bin" if classes == 10 else "train.bin")
    data = bytearray(path.read_bytes())
    data[0 if classes == 10 else 1] = label
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidInputError, match=f"label {label}"):
        load_data(f"cifar{classes}", folder)


def test_channels_and_resolution_on_demand(tmp_path: Path, digits: Data) -> None:
    colour = load_data("digits", resolution=24, channels=3)
    assert (colour.channels, colour.resolution) == (3, 24)
    images = colour.test.images.take(np.arange(5))
    assert images.shape == (5, 3, 24, 24)
    np.testing.assert_array_equal(images[:, 0], images[:, 2])
    grey = load_data("cifar10", _cifar(tmp_path / "cifar", 10), resolution=8, channels=1)
    assert grey.train.images.take(np.arange(3)).shape == (3, 1, 8, 8)


# -- folders of images -----------------------------------------------------------------------------


def test_a_folder_of_images(tmp_path: Path) -> None:
    root = _images(tmp_path / "images", {"cat": 20, "dog": 20, "emu": 20})
    data = load_data("folder", root, resolution=8)
    assert (data.num_classes, data.channels, data.resolution) == (3, 3, 8)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [42, 6, 12]
    parts = [_pixels(part) for part in (data.train, data.validation, data.test)]
    # Every image has a colour of its own, so equal pixels would be one image in two splits.
    assert len(set().union(*map(set, parts))) == sum(map(len, parts)) == 60
    for split in (data.train, data.validation, data.test):
        red = split.images.take(np.arange(len(split)))[:, 0].mean((1, 2))
        np.testing.assert_array_equal(red, 80 * split.labels)


@pytest.mark.parametrize(
    ("named", "sizes"),
    [
        (("train", "val", "test"), [20, 8, 8]),
        (("train", "val"), [18, 2, 8]),
        (("train", "test"), [18, 2, 8]),
    ],
)
def test_named_parts(tmp_path: Path, named: tuple[str, ...], sizes: list[int]) -> None:
    for part in named:
        count = 10 if part == "train" else 4
        _images(tmp_path / part, {"a": count, "b": count})
    data = load_data("folder", tmp_path, resolution=8)
    assert [len(part) for part in (data.train, data.validation, data.test)] == sizes


def test_an_image_is_cut_from_the_middle_at_its_proportions(tmp_path: Path) -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 24:40] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.fromarray(wide).save(tmp_path / name / f"{index}.png")
    data = load_data("folder", tmp_path, resolution=14)
    image = data.train.images.take(np.arange(1))[0, 0]
    assert image[:, 7].min() == 255
    assert image.shape == (14, 14)
    assert (image > 0).mean() > 0.9


def test_folders_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data-root FOLDER"):
        load_data("folder")
    with pytest.raises(InvalidInputError, match="no such folder"):
        load_data("folder", tmp_path / "missing")
    with pytest.raises(InvalidInputError, match="no images in it"):
        load_data("folder", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(InvalidInputError, match="no images in it; expected one subfolder a class"):
        load_data("folder", tmp_path)
    (tmp_path / "a" / "note.txt").write_text("no image")
    with pytest.raises(InvalidInputError, match="no images in it"):
        load_data("folder", tmp_path)


def test_one_class_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="1 class in the training data; needs at least 2"):
        load_data("folder", _images(tmp_path / "one", {"a": 20}), resolution=8)


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="too few images, none left for"):
        load_data("folder", _images(tmp_path / "few", {"a": 1, "b": 1}), resolution=8)


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    _images(tmp_path / "one" / "val", {"a": 4, "b": 4})
    with pytest.raises(InvalidInputError, match="no 'train' folder"):
        load_data("folder", tmp_path / "one")
    _images(tmp_path / "two" / "train", {"a": 4, "b": 4})
    _images(tmp_path / "two" / "val", {"a": 4, "c": 4})
    with pytest.raises(InvalidInputError, match="other class folders than in 'train'"):
        load_data("folder", tmp_path / "two")


def test_an_image_that_is_none(tmp_path: Path) -> None:
    root = _images(tmp_path / "images", {"a": 20, "b": 20})
    for path in (root / "a").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InvalidInputError, match="not a readable image") as caught:
        load_data("folder", root, resolution=8)
    assert str(root / "a") in str(caught.value)


def test_names() -> None:
    for name in DATASETS:
        check_data_name(name)
    with pytest.raises(UsageError, match="did you mean 'fashion-mnist'"):
        check_data_name("fashion_mnist")
    with pytest.raises(UsageError, match="known: digits, fashion-mnist, cifar10"):
        check_data_name("xyz")


def test_joined_splits_keep_their_order(digits: Data) -> None:
    joined = digits.train.concatenated(digits.validation)
    assert len(joined) == len(joined.images) == len(digits.train) + len(digits.validation)
    border = len(digits.train)
    indices = np.array([border, 0, border + 1, 5, border - 1])
    expected = [
        digits.validation.images.take(np.array([0]))[0],
        digits.train.images.take(np.array([0]))[0],
        digits.validation.images.take(np.array([1]))[0],
        digits.train.images.take(np.array([5]))[0],
        digits.train.images.take(np.array([border - 1]))[0],
    ]
    np.testing.assert_array_equal(joined.images.take(indices), np.stack(expected))
    np.testing.assert_array_equal(joined.labels[indices][1], digits.train.labels[0])


def test_the_real_fashion_mnist() -> None:
    """The Debian package's files, which the half-hour configuration runs on."""
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("install the Debian package dataset-fashion-mnist")
    data = load_data("fashion-mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (50_000, 10_000, 10_000)
    assert (data.channels, data.resolution, data.num_classes) == (1, 32, 10)
    for split in (data.train, data.validation, data.test):
        assert np.bincount(split.labels).tolist() == [len(split) // 10] * 10
    images, _ = data.batch(data.test, np.arange(50))
    assert images.shape == (50, 1, 32, 32)
    assert abs(images.mean()) < 0.2 and abs(images.std() - 1) < 0.2
