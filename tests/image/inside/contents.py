"""Runs as root in a container: what should not be in its image, and wrong modes in /opt/triton-chat."""

import json
import pwd
import shutil
import stat
import sys
from pathlib import Path

TOOLS = ("cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "cargo", "rustc", "nvcc", "git")
CACHE = str(Path(pwd.getpwuid(0).pw_dir, ".cache"))  # HOME is another folder in these images
LEFTOVERS = (CACHE, "/wheels", "/src", "/dist", "/tools", "/requirements", "/etc/pip.conf")
HOME = Path("/opt/triton-chat")

states = {str(path): path.lstat() for path in (HOME.parent, HOME, *HOME.rglob("*")) if not path.is_symlink()}
folder, file = stat.S_IROTH | stat.S_IXOTH, stat.S_IROTH
wanted = {path: folder if stat.S_ISDIR(found.st_mode) else file for path, found in states.items()}
report = {
    "tools": [name for name in TOOLS if shutil.which(name)],
    "leftovers": [path for path in LEFTOVERS if Path(path).exists()],
    "wheels": [path for path in states if path.endswith(".whl")],
    "temporary": [path.name for path in Path("/tmp").iterdir()],
    "not root's": [path for path, found in states.items() if found.st_uid or found.st_gid],
    "others may write": [path for path, found in states.items() if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)],
    "others may not read": [path for path, bits in wanted.items() if states[path].st_mode & bits != bits],
    "run as another": [path for path, found in states.items() if found.st_mode & (stat.S_ISUID | stat.S_ISGID)],
}
sys.stdout.write(json.dumps({what: paths for what, paths in report.items() if paths}))
