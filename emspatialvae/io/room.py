"""How much memory and disk a program may still take here: what the kernel says is available, within the limits of its control groups."""

import shutil
from pathlib import Path

ROOT = Path("/")
NO_LIMIT = 1 << 60
"""Control groups of version 1 say "no limit" with a number above this."""


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may take before the machine, or its control group (a queue's job, a container), has none left.

    None where the system does not tell. File pages count as free: they are given back when memory is asked for.
    """
    rooms = [room for room in (_available(root), *_rooms_of_groups(root)) if room is not None]
    return min(rooms) if rooms else None


def free_disk(place: Path) -> int | None:
    """Bytes that may be written at a place, which need not exist yet; None where the system does not tell."""
    there = next((folder for folder in (place, *place.absolute().parents) if folder.exists()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None


def _available(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(rest.split()[0])
    return None


def _rooms_of_groups(root: Path) -> list[int | None]:
    """What each control group that we are in, and each around it, has left."""
    rooms: list[int | None] = []
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":  # version 2; beside version 1 it is mounted elsewhere, and has no memory then
            home, limit, used, pages = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            home, limit, used, pages = (
                mounted / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # A container sees its own group as the root of what is mounted, whatever its path outside is.
        group = home / own.lstrip("/")
        for folder in (group, *group.parents):
            rooms.append(_room_of_group(folder, limit, used, pages))
            if folder == home:
                break
    return rooms


def _room_of_group(folder: Path, limit: str, used: str, pages: str) -> int | None:
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if not (most.isdecimal() and now.isdecimal()) or int(most) > NO_LIMIT:
        return None
    words = (line.split() for line in _text(folder / "memory.stat").splitlines())
    given_back = next((int(found[1]) for found in words if found[:1] == [pages]), 0)
    return max(0, int(most) - int(now) + given_back)


def _text(file: Path) -> str:
    """What a file of the kernel holds; nothing where it is not there, or not for us."""
    try:
        return file.read_text()
    except OSError:
        return ""
