"""Run by the hostile-pickle tests in a process of its own: opens every file of a folder and reports what happened.

An audit hook stays for the life of the process. From the first file on, the only event it lets pass is opening the very
file under test for reading; everything else (an import, compiled code, a system call, a socket, a written file) counts.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.memory import peak_memory_mib
from sdkit.weights.pickle import open_pickle

allowed = ""
events: list[str] = []


def watch(event: str, args: tuple[object, ...]) -> None:
    if not allowed:
        return
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    if event == "open" and args[0] == allowed and not int(str(args[2])) & writing:
        return
    events.append(f"{event} {str(args)[:200]}")


def read_all(path: Path) -> str:
    try:
        with open_pickle(path) as weights:
            for info in weights.tensors.values():
                weights.read(info)
        return "opened"
    except SdkitError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"CRASH {error!r}"


def main(folder: Path) -> None:
    global allowed
    sys.addaudithook(watch)
    results: dict[str, dict[str, object]] = {}
    for path in sorted(folder.iterdir()):
        allowed = str(path)
        started = time.perf_counter()
        outcome = read_all(path)
        seconds = time.perf_counter() - started
        allowed = ""
        results[path.name] = {"outcome": outcome, "events": events[:], "seconds": seconds}
        events.clear()
    # The control: the hook must see what the ordinary reader does with a harmless call.
    allowed = "nothing"
    pickle.loads(b"cbuiltins\nlen\n(]tR.")
    control, allowed = events[:], ""
    print(json.dumps({"results": results, "control": control, "peak": peak_memory_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
