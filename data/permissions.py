"""Who else on this machine may write into a runs directory, and so change what its numbers are made from."""

import grp
import pwd
import stat
from pathlib import Path


def doors_open(runs: Path | None) -> tuple[str, ...]:
    """One sentence when other accounts may write into the directory or into a run in it; nothing when none may.

    A group counts unless it is the owner's own, without other members. No directory, or none yet: nothing.
    """
    if runs is None:
        return ()
    try:
        inside = [entry for entry in runs.iterdir() if not entry.name.startswith(".") and not entry.is_symlink()]
        who = {place: _others_who_write(place) for place in (runs, *inside)}
    except OSError:
        return ()
    open_doors = [place for place in who if who[place]]
    if not open_doors:
        return ()
    first = open_doors[0]
    more = f" and {len(open_doors) - 1} more of its folders" if len(open_doors) > 1 else ""
    return (
        f"{first}{more} can be written by {who[first]}: they could change runs, and the numbers with them. "
        f"If that is not meant: chmod -R go-w {runs}",
    )


def _others_who_write(directory: Path) -> str:
    """In words who beside the owner may write; "" when nobody may."""
    state = directory.stat()
    if not stat.S_ISDIR(state.st_mode):
        return ""
    if state.st_mode & stat.S_IWOTH:
        return "every account of this machine"
    if state.st_mode & stat.S_IWGRP and not _own_group(state.st_gid, state.st_uid):
        return f"the group {_group_name(state.st_gid)}"
    return ""


def _own_group(gid: int, uid: int) -> bool:
    """Whether the group is the one that many systems make for each account, with nobody else in it."""
    try:
        group, owner = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return owner.pw_gid == gid and group.gr_name == owner.pw_name and not set(group.gr_mem) - {owner.pw_name}


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
