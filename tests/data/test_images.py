"""Images of every format and mode come out as pixels that training can use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.data.images import read_image
from domainfusion.errors import DataError

CONFIG = DataConfig(size=20)


class TestFormats:
    """Every kind of image comes out as upright RGB with the pixels that it shows."""

    def check(self, path: Path, expected: np.ndarray | tuple[int, ...], tolerance: int = 0) -> None:
        found = read_image(path, 4)
        assert found.shape == (4, 4, 3)
        assert found.dtype == np.uint8
        difference = np.abs(found.astype(int) - np.broadcast_to(expected, (4, 4, 3)))
        assert difference.max() <= tolerance, found

    def test_grayscale(self, tmp_path: Path) -> None:
        values = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
        Image.fromarray(values).save(tmp_path / "x.png")
        self.check(tmp_path / "x.png", np.repeat(values[..., None], 3, 2))

    def test_grayscale_jpeg(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4), 77).save(tmp_path / "x.jpg")
        self.check(tmp_path / "x.jpg", (77, 77, 77), tolerance=1)

    def test_black_and_white(self, tmp_path: Path) -> None:
        Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "x.png")
        self.check(tmp_path / "x.png", np.eye(4)[..., None] * [255, 255, 255])

    def test_transparency_lies_on_white(self, tmp_path: Path) -> None:
        values = np.zeros((4, 4, 4), dtype=np.uint8)
        values[:2] = (200, 0, 0, 255)
        values[2] = (200, 0, 0, 51)  # a fifth of red on four fifths of white
        values[3] = (9, 9, 9, 0)
        Image.fromarray(values).save(tmp_path / "x.png")
        expected = np.array([(200, 0, 0), (200, 0, 0), (244, 204, 204), (255, 255, 255)])[:, None]
        self.check(tmp_path / "x.png", expected, tolerance=1)

    def test_gray_with_alpha(self, tmp_path: Path) -> None:
        Image.new("LA", (4, 4), (10, 0)).save(tmp_path / "x.png")
        self.check(tmp_path / "x.png", (255, 255, 255))

    def test_palette(self, tmp_path: Path) -> None:
        image = Image.fromarray((np.arange(16, dtype=np.uint8) % 2).reshape(4, 4))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.save(tmp_path / "x.png")
        expected = np.array([(10, 20, 30), (200, 100, 50)])[np.arange(16).reshape(4, 4) % 2]
        self.check(tmp_path / "x.png", expected)

    def test_palette_with_a_transparent_colour(self, tmp_path: Path) -> None:
        image = Image.fromarray((np.arange(16, dtype=np.uint8) % 2).reshape(4, 4))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.save(tmp_path / "x.png", transparency=0)
        expected = np.array([(255, 255, 255), (200, 100, 50)])[np.arange(16).reshape(4, 4) % 2]
        self.check(tmp_path / "x.png", expected)

    def test_palette_with_alpha_of_each_colour(self, tmp_path: Path) -> None:
        image = Image.fromarray((np.arange(16, dtype=np.uint8) % 2).reshape(4, 4))
        image.putpalette([0, 0, 0, 200, 100, 50])
        image.save(tmp_path / "x.png", transparency=bytes([51, 255]))
        expected = np.array([(204, 204, 204), (200, 100, 50)])[np.arange(16).reshape(4, 4) % 2]
        self.check(tmp_path / "x.png", expected, tolerance=1)

    def test_rgb_with_a_transparent_colour(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "x.png", transparency=(1, 2, 3))
        self.check(tmp_path / "x.png", (255, 255, 255))

    def test_cmyk(self, tmp_path: Path) -> None:
        Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "x.tif")
        self.check(tmp_path / "x.tif", (255, 0, 0))

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        Image.new("CMYK", (4, 4), (255, 0, 255, 0)).save(tmp_path / "x.jpg", quality=95)
        self.check(tmp_path / "x.jpg", (0, 255, 0), tolerance=4)

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path: Path) -> None:
        values = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)  # 0 to 65,535
        Image.fromarray(values).save(tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as image:
            assert image.mode.startswith("I")
        self.check(tmp_path / "x.png", np.repeat((np.arange(16) * 17).reshape(4, 4, 1), 3, 2), tolerance=1)

    def test_sixteen_bit_tiff(self, tmp_path: Path) -> None:
        values = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
        Image.fromarray(values).save(tmp_path / "x.tif")
        self.check(tmp_path / "x.tif", np.repeat((np.arange(16) * 17).reshape(4, 4, 1), 3, 2), tolerance=1)

    @pytest.mark.parametrize(
        ("kind", "largest", "white"),
        [
            (np.uint16, 200, 255), (np.uint16, 256, 1023), (np.uint16, 4095, 4095), (np.uint16, 2500, 4095),
            (np.uint16, 4096, 16383), (np.uint16, 20000, 65535), (np.uint16, 65535, 65535),
            (np.int32, 100_000, 100_000), (np.float32, 0.5, 1), (np.float32, 200, 255), (np.float32, 255.9, 1023),
            (np.float32, 2500, 4095),
        ],
    )  # fmt: skip
    def test_more_than_eight_bits_are_scaled_by_the_depth_that_holds_them(
        self, tmp_path: Path, kind: type, largest: float, white: float
    ) -> None:
        values = np.linspace(0, largest, 16).astype(kind).reshape(4, 4)
        Image.fromarray(values).save(tmp_path / "x.tif")
        expected = (values.astype(np.float64) / white * 255).round()
        self.check(tmp_path / "x.tif", expected[..., None])

    def test_exposures_of_one_detector_keep_their_brightness(self, tmp_path: Path) -> None:
        for name, largest in (("bright", 4000), ("dark", 2000)):  # of 12 bits
            Image.fromarray(np.full((4, 4), largest, np.uint16)).save(tmp_path / f"{name}.png")
        bright, dark = (int(read_image(tmp_path / f"{name}.png", 4)[0, 0, 0]) for name in ("bright", "dark"))
        assert (bright, dark) == (249, 125)

    def test_values_below_zero_begin_at_black(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[-1000, 0], [1000, 3095]], np.int32)).save(tmp_path / "x.tif")  # 12 bits, shifted
        assert read_image(tmp_path / "x.tif", 2)[..., 0].tolist() == [[0, 62], [125, 255]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, tmp_path: Path, orientation: int) -> None:
        # What the eight values mean, from the Exif standard: where the upright image's rows and columns are stored.
        upright = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stored = {
            1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
            5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).swapaxes(0, 1),
            8: np.rot90(upright, -1),
        }[orientation]  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
        self.check(tmp_path / "x.png", upright)

    def test_of_an_animation_the_first_frame_is_taken(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
        self.check(tmp_path / "x.gif", (255, 0, 0))
        frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
        self.check(tmp_path / "x.webp", (255, 0, 0))

    def test_images_are_resized_to_a_square(self, tmp_path: Path) -> None:
        values = np.zeros((20, 40, 3), dtype=np.uint8)
        values[:, 20:] = 250
        Image.fromarray(values).save(tmp_path / "x.png")
        found = read_image(tmp_path / "x.png", 4)
        assert found[:, 0].max() == 0
        assert found[:, 3].min() == 250

    def test_large_jpegs_keep_their_colours(self, tmp_path: Path) -> None:
        Image.new("RGB", (900, 700), (200, 100, 50)).save(tmp_path / "x.jpg", quality=95)
        self.check(tmp_path / "x.jpg", (200, 100, 50), tolerance=3)

    def test_an_image_larger_than_pillow_trusts_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(DataError, match=r"x\.png cannot be read .*DecompressionBomb"):
            read_image(tmp_path / "x.png", 4)
