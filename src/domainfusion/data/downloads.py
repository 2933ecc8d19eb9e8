"""Where the benchmarks' files are published, and their download.

Sizes and checksums are given where several independent projects agree on them (DomainNet's MD5), or where the server's
size was recorded (Caltech Camera Traps). What is downloaded is recorded with its SHA-256 in `downloads.json`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from domainfusion.data.fetching import Remote, fetch
from domainfusion.errors import DataError, UsageError
from domainfusion.files import make_folder, read_json, write_json

RECORD = "downloads.json"

_BU = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"

DOWNLOADS = {
    "DomainNet": (
        Remote(f"{_BU}/groundtruth/clipart.zip", md5="cd0d8f2d77a4e181449b78ed62bccf1e", about="1.3 GB"),
        Remote(f"{_BU}/infograph.zip", md5="720380b86f9e6ab4805bb38b6bd135f8", about="4.0 GB"),
        Remote(f"{_BU}/groundtruth/painting.zip", md5="1ae32cdb4f98fe7ab5eb0a351768abfd", about="3.7 GB"),
        Remote(f"{_BU}/quickdraw.zip", md5="bdc1b6f09f277da1a263389efe0c7a66", about="439 MB"),
        Remote(f"{_BU}/real.zip", md5="dcc47055e8935767784b7162e7c7cca6", about="5.6 GB"),
        Remote(f"{_BU}/sketch.zip", md5="658d8009644040ff7ce30bb2e820850f", about="2.5 GB"),
        Remote(
            "https://raw.githubusercontent.com/facebookresearch/DomainBed/main/domainbed/misc/domain_net_duplicates.txt",
            about="0.4 MB",
        ),
    ),
    "TerraIncognita": (
        Remote(f"{_LILA}/eccv_18_annotations.tar.gz", size=2997071),
        Remote(f"{_LILA}/eccv_18_all_images_sm.tar.gz", size=6492615601),
    ),
}

# The other three are on Google Drive, which answers programs with a page to be confirmed, and refuses after some loads.
MANUAL = {
    "PACS": "open https://drive.google.com/uc?id=1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd (the file of DomainBed's script), "
    "save it as PACS.zip",
    "VLCS": "open https://drive.google.com/uc?id=1skwblH1_okBwxWxmRsp9_qi15hyPpxg8 (the file of DomainBed's script), "
    "save it as VLCS.tar.gz",
    "OfficeHome": "open https://drive.google.com/uc?id=1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC (the file of DomainBed's "
    "script; home page http://hemanthdv.org/OfficeHome-Dataset/), save it as office_home.zip",
}
ARCHIVE_NAMES = {"PACS": "PACS.zip", "VLCS": "VLCS.tar.gz", "OfficeHome": "office_home.zip"}


def manual_steps(name: str, folder: Path) -> str:
    """What a person does to get `name`, in one line."""
    if name in MANUAL:
        steps, source = MANUAL[name], folder / ARCHIVE_NAMES[name]
    else:
        steps, source = "save into that folder: " + " ".join(remote.url for remote in DOWNLOADS[name]), folder
    return f"{steps}, then: domainfusion data prepare {name} {source} OUTPUT"


def download(name: str, folder: Path, *, mirror: str | None = None, progress: bool = True) -> dict[str, Any]:
    """Download the files of the benchmark `name` into `folder`, and return {file: record}; a second call resumes.

    Args:
        mirror: address of a server that has the same files, by name.

    Raises:
        UsageError: `name` has no source that a program can load from; says what a person does.
        DataError: a file cannot be loaded, or is not the one that is known; says what a person does.
        FileError: the disk is full.
    """
    if name not in DOWNLOADS:
        raise UsageError(f"{name} cannot be downloaded by a program: {manual_steps(name, folder)}")
    make_folder(folder)
    records = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    for remote in DOWNLOADS[name]:
        if mirror:
            remote = dataclasses.replace(remote, url=f"{mirror.rstrip('/')}/{remote.file}")
        path = folder / remote.file
        known = records.get(remote.file)
        if known and path.exists() and path.stat().st_size == known["size"]:
            continue
        try:
            records[remote.file] = fetch(remote, path, progress=progress)
        except DataError as error:
            raise DataError(f"{error}; by hand: {manual_steps(name, folder)}") from error
        write_json(folder / RECORD, records)
    return {remote.file: records[remote.file] for remote in DOWNLOADS[name]}
