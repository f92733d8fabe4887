"""Windows: every module loads without what only POSIX has, and devices train so with no extra but torch."""

import subprocess
import sys
from pathlib import Path

# Modules are loaded twice: the first time brings in other packages, which know for themselves where they run.
SCRIPT = """
import builtins, importlib, os, pkgutil, runpy, signal, sys, time
import clients, fedhp, strategies

ours = ("fedhp", "clients", "strategies")
found = [module for package in (fedhp, clients, strategies)
         for _, module, _ in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
         if not module.endswith("__main__")]
for name in found:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.split(".")[0] in ours]:
    del sys.modules[name]

foreign = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt"}
load = builtins.__import__
def without(name, globals=None, *rest, **named):
    if name.split(".")[0] in foreign and (globals or {}).get("__name__", "").split(".")[0] in ours:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    return load(name, globals, *rest, **named)
builtins.__import__ = without
os.environ["USERNAME"] = "somebody"  # as there: other packages ask for it at first use
for name in ("SIGHUP", "SIGKILL", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT", "SIGUSR1", "pthread_kill"):
    delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "getgid", "killpg", "setsid", "sched_getaffinity", "statvfs"):
    delattr(os, name)

for name in found:
    importlib.import_module(name)
foreign |= {"datasets", "flwr_datasets", "jinja2", "matplotlib", "pandas", "pyarrow", "ray", "sklearn"}
runpy.run_path(sys.argv[1], run_name="__main__")

from fedhp import terminal
terminal.stop_cleanly()
terminal._stop._come_again()
try:
    for _ in range(1000):
        time.sleep(0.01)
    raise AssertionError("the stop was lost")
except KeyboardInterrupt:
    terminal._stop.retire()
"""


def test_nothing_needs_what_windows_does_not_have_and_devices_no_extra_but_torch():
    trained = Path(__file__).with_name("fleet_of_four.py")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, trained], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
