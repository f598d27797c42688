"""Work that never ends by itself; run as a program, with a file for the workers' numbers."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.work import Clock, do


@dataclass(frozen=True)
class Sleep:
    """Writes the number of its process, and sleeps."""

    name: str
    path: Path

    def run(self) -> None:
        self.path.write_text(str(os.getpid()))
        time.sleep(600)


if __name__ == "__main__":
    from sleeping_work import Sleep as Named  # the workers find it by its module's name

    folder = Path(sys.argv[1])
    do([Named(name, folder / name) for name in ("a", "b")], 2, Clock(None), print)
