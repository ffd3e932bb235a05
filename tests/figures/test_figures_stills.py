from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from analysis.simulated import trial

from lora_lab.common.errors import StorageError
from lora_lab.figures.report import panels_of
from lora_lab.figures.stills import KEY_FIGURES, png, write_stills

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.figures.evidence import Evidence


def size(image: bytes) -> tuple[int, int]:
    assert image.startswith(b"\x89PNG")
    return struct.unpack(">II", image[16:24])


def colors(image: bytes) -> int:
    from io import BytesIO

    from matplotlib.image import imread

    pixels = imread(BytesIO(image))
    return len({tuple(pixel) for row in pixels[::4] for pixel in (row[:, :3] * 255).astype(int).tolist()})


@pytest.mark.slow
def test_every_figure_of_the_report_can_be_a_still(whole: Evidence) -> None:
    for panel in panels_of(whole):
        if panel.figure is not None:
            image = png(panel)
            assert size(image) == (880, 528)
            assert colors(image) > 20, panel.key


def test_the_key_figures_are_written_and_old_ones_removed(whole: Evidence, evidence: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    written = write_stills(folder, panels_of(whole))

    assert {path.stem for path in written} == set(KEY_FIGURES) - {"predicted-memory"}
    assert sorted(folder.iterdir()) == sorted(written)
    assert write_stills(folder, panels_of(evidence([]))) == []
    assert list(folder.iterdir()) == []


def test_names_are_no_formulas(evidence: Callable) -> None:
    trials = [trial(i, 4.0 + i, r=4 * 2**i, target_modules=("_a$x^{", "b & <c>")[i]) for i in range(2)]
    (panel,) = [panel for panel in panels_of(evidence(trials)) if panel.key == "loss-by-rank"]

    assert size(png(panel)) == (880, 528)


def test_a_folder_that_cannot_be_written_is_named(whole: Evidence, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*file/figures.*Not a directory; free space or fix"):
        write_stills(tmp_path / "file" / "figures", panels_of(whole))
