"""One run of a suite, as launchers start it: ``python -m sb3_qam.suite FOLDER RUN TIMEOUT``; the last two are JSON."""

import json
import os
import sys
import threading
from pathlib import Path

from sb3_qam.suite import Run, execute


def end_with_launcher() -> None:
    """Its end of the pipe closes when it dies, however it does."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_launcher, daemon=True).start()
    folder, run, timeout = sys.argv[1:]
    execute(Run(**json.loads(run)), Path(folder), json.loads(timeout))
