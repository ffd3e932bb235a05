"""Whether a file lies on this machine: SQLite's write-ahead log needs memory that all its users share."""

from __future__ import annotations

from pathlib import Path

import psutil

from lora_lab.common.errors import StorageError
from lora_lab.search.urls import EXAMPLES

SHARES = ("nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afpfs", "afs", "webdav", "davfs2", "sshfs")
CLUSTERS = (
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "ceph-fuse",
    "glusterfs",
    "orangefs",
    "pvfs2",
    "wekafs",
    "gfs2",
    "ocfs2",
)
OBJECT_STORES = ("s3fs", "goofys", "gcsfuse", "blobfuse2", "juicefs", "rclone")
NETWORKED = frozenset((*SHARES, *CLUSTERS, *OBJECT_STORES))
"""File systems that several machines see at once, as the system calls them, some with `fuse.` before."""


def file_system(path: Path) -> str:
    """The kind of file system that a path is on, or would be; empty where the system does not tell."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    place = place.resolve()
    mounts = {Path(mount.mountpoint): mount.fstype.lower() for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (place, *place.parents) if folder in mounts), "")


def check_is_local(file: Path) -> None:
    """Refuse a SQLite file on a network file system.

    Raises:
        StorageError: it is on one.
    """
    kind = file_system(file)
    if kind.removeprefix("fuse.") in NETWORKED:
        raise StorageError(
            f"storage {file} is on a network file system ({kind}), where SQLite loses data; put it on a disk of this "
            f"machine (storage: sqlite:////local/folder/study.db; an existing file can be copied there), or use "
            f"PostgreSQL (storage: {EXAMPLES['postgresql']}), which several machines can share"
        )
