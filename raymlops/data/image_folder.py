"""Images in a folder, one sub-folder a class, as a torch dataset: ``train/cat/1.jpg``, ``train/dog/nested/2.png``.

Owns how such a folder is listed and what an item is. ``images`` owns how a file is decoded.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.images import MODES, open_image, pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image

_SUFFIXES = (".jpg", ".jpeg", ".png")


class ImageFolder:
    """Items ``{"image": float32 of shape (channels, height, width) from 0 to 1, "label": number of the class}``.

    That is what the default ``encode`` makes of a request's ``image`` column, so a model that is trained on it answers
    requests. Images are scaled to ``size``, (height, width), or must all have one size. A ``transform``, such as one of
    torchvision, takes Pillow's image instead, and returns what the item holds as ``image``; what it draws from torch,
    ``random`` or ``numpy.random`` is seeded. Other files are left out, and so are names that start with a dot.

    ``classes`` are the sub-folders' names, by default all there are, in order: give the training split's to the others,
    where one of them may lack a class.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        classes: Sequence[str] | None = None,
        transform: Callable[[Image], Any] | None = None,
    ) -> None:
        """List the folder.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds no image, or a sub-folder that is not among ``classes``.
        """
        self.folder = Path(folder)
        there = sorted(each.name for each in os.scandir(self.folder) if each.is_dir() and each.name[0] != ".")
        self.classes = list(there if classes is None else classes)
        if unknown := [name for name in there if name not in self.classes]:
            raise ValueError(f"{self.folder} has folders of other classes than {', '.join(self.classes)}: {unknown}")
        found = [
            (f"{name}/{path}", number)
            for number, name in enumerate(self.classes)
            if name in there
            for path in _images(self.folder / name)
        ]
        if not found:
            raise ValueError(f"{self.folder} holds no PNG or JPEG file in a folder for its class, as in cat/1.jpg")
        self.paths = [path for path, _ in found]
        """Of the images, below ``folder``."""
        self.labels = np.array([number for _, number in found])
        """The number of each image's class, such as for a ``sampler`` that balances them."""
        self._size, self._channels, self._transform = size, channels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.folder / self.paths[index]
        try:
            image = open_image(path.read_bytes(), ())
            held = self._scaled(image) if self._transform is None else self._transform(image)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return {"image": held, "label": self.labels[index]}

    def fingerprint(self) -> str:
        """Return what changes with the images: a digest of their names, sizes in bytes and classes."""
        digest = sha256(repr((self.classes, self._size, self._channels)).encode())
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path}:{label}:{(self.folder / path).stat().st_size}\n".encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.folder)!r}: {len(self)} images of {len(self.classes)} classes)"

    def _scaled(self, image: Image) -> Any:
        if self._size is not None and image.size != self._size[::-1]:
            image.draft(image.mode, self._size[::-1])  # a JPEG is decoded at the nearest larger eighth
            if image.mode in {"1", "P", "PA"}:  # whose values are not colours, so that Pillow would not blend them
                image = image.convert(MODES[self._channels])
            image = image.resize(self._size[::-1])
        array = pixels(image, self._channels).astype(np.float32) / 255
        return np.ascontiguousarray(array.transpose(2, 0, 1))


def _images(folder: Path) -> list[str]:
    """Return the images below a folder in order, links to folders included."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [
            Path(parent, name).relative_to(folder).as_posix()
            for name in files
            if name[0] != "." and name.lower().endswith(_SUFFIXES)
        ]
    return sorted(found)
