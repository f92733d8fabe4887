"""Units of systemd, as text: what keeps a server or a device going over restarts of the machine."""

import getpass
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedhp.errors import DeploymentError, FedhpError

_UNIT = """\
[Unit]
Description=fedhp {what}
Wants=network-online.target
After=network-online.target

[Service]
User={user}
WorkingDirectory={folder}
ExecStart={words}
# Whatever ended it: a disk that is not mounted yet, an interface or a clock that comes late are refused with
# the same status as a wrong option, and pass. What does not is refused twice a minute: the journal says why.
Restart=always
RestartSec=30
SuccessExitStatus=143
UMask=0077
NoNewPrivileges=yes
PrivateTmp={private}

[Install]
WantedBy=multi-user.target
"""


def unit(what: str, arguments: Sequence[str]) -> str:
    """Returns the unit that runs a command of fedhp's as it would run here.

    Args:
        what: What it is.
        arguments: The command's words after ``fedhp``.

    Raises:
        DeploymentError: If a word has a line end, or what else a line of a unit cannot hold.
    """
    words, folder = [str(Path(sys.executable).parent / "fedhp"), *arguments], str(Path.cwd())
    if broken := [word for word in (*words, folder) if re.search(r"[\x00-\x1f\x7f]", word)]:
        raise DeploymentError(f"a unit holds no line ends and control characters; got {broken[0]!r}")
    uses_tmp = any(word.startswith(("/tmp/", "/var/tmp/")) for word in (f"{folder}/", *words))
    return _UNIT.format(
        what=what,
        user=getpass.getuser(),
        folder=folder.replace("%", "%%"),
        private="no" if uses_tmp else "yes",  # or the service finds nothing there
        words=" ".join(map(_quoted, words)),
    )


def remarks(checks: Iterable[str]) -> Iterator[str]:
    """Yields what a service would be refused for as things are, what it would tell, and of its user's rights.

    Args:
        checks: What the command looks at before it starts anything.
    """
    try:
        yield from checks
    except FedhpError as error:
        yield f"as things are, it would not start: {error}"
    if getpass.getuser() == "root":
        yield "it would run as root; print it as, or change User= to, a user that may do less"


def _quoted(word: str) -> str:
    """Writes a word as systemd reads it, which takes % and $ for its own."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if word and shlex.quote(word) == word else f'"{word}"'
