"""Exits at once, unless the file that it is given the name of is there: then it works."""

import sys
from pathlib import Path

if not Path(sys.argv[1]).exists():
    sys.stderr.write("this program is broken\n")
    sys.exit(7)

from jobgate.worker import serve

serve(lambda command: command.body)
