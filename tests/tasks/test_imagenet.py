"""Reading a user's photographs: class folders by index, WordNet id and name; pixels; files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.tasks import TaskRequest
from autocomp.tasks.imagenet import class_index, read_image, read_images, task

HERE = Path("photos")


def photo(path: Path, size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (255, 0, 127)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "index"),
    [("0", 0), ("999", 999), ("n01440764", 0), ("tench", 0), ("Great_White_Shark", 2), ("great white shark", 2),
     ("n02123045", 281), ("tabby cat", 281), ("toilet tissue", 999)],
)  # fmt: skip
def test_class_folders(name, index):
    assert class_index(name, HERE / name) == index


@pytest.mark.parametrize(
    ("name", "expected"),
    [("1000", "from 0 to 999, got 1000"), ("tenhc", "did you mean 'tench'"), ("n99999999", "photos/n99999999 is no")],
)
def test_folders_that_name_no_class(name, expected):
    with pytest.raises(UserError, match=expected):
        class_index(name, HERE / name)


def test_pixels_worked_by_hand(tmp_path):
    # (rgb − 127) / 128: 255 → 1, 0 → −127/128, 127 → 0; a plain colour stays plain through crop and resampling.
    pixels = read_image(photo(tmp_path / "a.png"), 16)
    assert pixels.shape == (3, 16, 16)
    for channel, value in zip(pixels, (1.0, -127 / 128, 0.0), strict=True):
        assert (channel == np.float32(value)).all()


def test_the_centre_is_cropped(tmp_path):
    # 256 × 512, red but for a blue square of 224 × 224 in the middle: nothing but blue is left.
    image = Image.new("RGB", (512, 256), (255, 0, 0))
    image.paste((0, 0, 255), (144, 16, 368, 240))
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 224)
    assert (pixels[2] == 1.0).all()
    assert (pixels[0] == np.float32(-127 / 128)).all()


def test_grey_and_transparent_images_are_read_as_colour(tmp_path):
    Image.new("L", (20, 20), 127).save(tmp_path / "grey.png")
    Image.new("RGBA", (20, 20), (127, 127, 127, 10)).save(tmp_path / "clear.png")
    for name in ("grey.png", "clear.png"):
        assert (read_image(tmp_path / name, 8) == 0).all()


def test_a_folder_of_classes(tmp_path):
    photo(tmp_path / "tench" / "b.jpg")
    photo(tmp_path / "tench" / "a.JPEG")
    photo(tmp_path / "n02123045" / "c.png", colour=(0, 0, 0))
    (tmp_path / "tench" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    data = read_images(tmp_path, 8, QuietDisplay())
    assert data.inputs.shape == (3, 3, 8, 8)
    assert data.labels.tolist() == [281, 0, 0]
    assert (data.inputs[0] == np.float32(-127 / 128)).all()


def test_a_truncated_photograph_is_named(tmp_path):
    path = photo(tmp_path / "tench" / "cut.jpg", (300, 200))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"image .*tench/cut.jpg cannot be read .*: replace or remove it"):
        read_images(tmp_path, 8, QuietDisplay())


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_files_that_are_no_images(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"image .*a.png cannot be read"):
        read_image(tmp_path / "a.png", 8)


def test_folders_without_anything_to_read(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        read_images(tmp_path / "nowhere", 8, QuietDisplay())
    with pytest.raises(UserError, match="has no class folders"):
        read_images(tmp_path, 8, QuietDisplay())
    (tmp_path / "tench").mkdir()
    with pytest.raises(UserError, match=r"no image \(.jpg"):
        read_images(tmp_path, 8, QuietDisplay())


def test_what_the_task_needs():
    with pytest.raises(UserError, match="needs images: --data DIR"):
        task(TaskRequest("imagenet"), QuietDisplay())
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite"):
        task(TaskRequest("imagenet", network="efficientnet_lite"), QuietDisplay())
