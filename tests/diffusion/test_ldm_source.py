"""Which LDM a name stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

from domainfusion.diffusion.ldm_source import source_fingerprint


def test_the_fingerprint_of_a_source_is_that_of_its_files(tiny_pipeline: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, copy)
    assert source_fingerprint(str(copy)) == source_fingerprint(str(tiny_pipeline))
    (copy / "styles.json").unlink()  # says which words to use, not what is drawn
    assert source_fingerprint(str(copy)) == source_fingerprint(str(tiny_pipeline))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    assert source_fingerprint(str(copy)) != source_fingerprint(str(tiny_pipeline))
