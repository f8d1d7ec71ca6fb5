"""A folder of images as a split: classes by folder, items as a request's encode makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TinyConfig

from raymlops.arrays import Column
from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.image_folder import ImageFolder
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase
from raymlops.signature import Signature

if TYPE_CHECKING:
    from pathlib import Path


class Shapes(RecipeBase):
    """Has an image column, and the default ``encode``."""

    Config = TinyConfig

    def signature(self) -> Signature:
        return Signature((Column("image", "image", shape=(6, 8, 3)),), (Column("y", "float"),))


def picture(shade: int, *, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0], 3), shade, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shade in (("dog/a.png", 100), ("cat/b.PNG", 50), ("cat/deep/a.png", 0), ("cat/.hidden.png", 1)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(shade).save(path, "PNG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "readme.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_images_with_a_palette_are_scaled_as_others(tmp_path: Path) -> None:
    """Pillow would drop rows and columns of them."""
    stripes = np.zeros((6, 8, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    for name, image in (("a", Image.fromarray(stripes)), ("b", Image.fromarray(stripes).quantize(2))):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.png")
    coloured, palette = (item["image"] for item in ImageFolder(tmp_path, size=(3, 4)))
    assert np.array_equal(coloured, palette)
    assert 0.3 < palette[0, 1, 1] < 0.5


def test_items_are_what_encode_makes_of_a_request(folder: Path) -> None:
    """Classes in the order of their names, images in that of their paths, pixels from 0 to 1."""
    images = ImageFolder(folder)
    assert images.classes == ["cat", "dog"]
    assert images.paths == ["cat/b.PNG", "cat/deep/a.png", "dog/a.png"]
    assert images.labels.tolist() == [0, 0, 1]
    batch = DatasetSplit(images, name="train", recipe=Shapes()).batch(torch.arange(3))
    assert batch["label"].tolist() == [0, 0, 1]
    requests = np.stack([np.asarray(picture(shade)) for shade in (50, 0, 100)])
    expected: Any = Shapes().encode({"image": requests})
    assert torch.equal(batch["image"], expected["image"] if isinstance(expected, dict) else expected)


def test_images_are_scaled_or_transformed(folder: Path) -> None:
    """To one size; or whatever a transform of Pillow's image returns."""
    assert ImageFolder(folder, size=(3, 5))[0]["image"].shape == (3, 3, 5)
    assert ImageFolder(folder, size=(3, 5), channels=1)[0]["image"].shape == (1, 3, 5)
    turned = ImageFolder(folder, transform=lambda image: image.rotate(90, expand=True).size)
    assert turned[0]["image"] == (6, 8)


def test_a_split_without_a_class_counts_as_the_others(folder: Path) -> None:
    """The classes of the training split keep their numbers; one that it lacks is refused."""
    (folder / "cat").rename(folder.parent / "cat")
    assert ImageFolder(folder, classes=["cat", "dog"]).labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"other classes than cat, cow: \['dog'\]"):
        ImageFolder(folder, classes=["cat", "cow"])


def test_a_damaged_file_is_named(folder: Path) -> None:
    """With its row, and what it is instead."""
    (folder / "cat" / "b.PNG").write_bytes(b"html")
    split = DatasetSplit(ImageFolder(folder), name="train", recipe=Shapes())
    with pytest.raises(RecipeError, match=r"item 0 raised ValueError: .*cat/b\.PNG: got 4 bytes that are no PNG"):
        split.batch(torch.arange(2))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """With what is expected of one."""
    with pytest.raises(ValueError, match=r"no PNG or JPEG file in a folder for its class, as in cat/1\.jpg"):
        ImageFolder(tmp_path)
    with pytest.raises(FileNotFoundError):
        ImageFolder(tmp_path / "missing")


def test_the_fingerprint_follows_the_files(folder: Path) -> None:
    """It is the same in another place, and another once a file is."""
    images = ImageFolder(folder)
    before = images.fingerprint()
    assert ImageFolder(folder).fingerprint() == before
    picture(7, size=(80, 6)).save(folder / "cat" / "b.PNG", "PNG")
    assert images.fingerprint() != before
