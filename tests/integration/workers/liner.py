"""
A program that knows nothing of jobgate: reads a line, prints lines.

    liner.py [--banner TEXT] [--end TEXT]

`many N` prints N lines, `extra` says too much, `later` says more after its line,
`two` prints a second line at once, `die` exits with status 3; anything else is
printed in upper case.
"""

import argparse
import sys
import time


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


options = argparse.ArgumentParser()
options.add_argument("--banner", default="")
options.add_argument("--end", default="")
options.add_argument("--boot", type=float, default=0)
given = options.parse_args()
time.sleep(given.boot)
if given.banner:
    say(given.banner)
for line in sys.stdin:
    word, _, argument = line.rstrip("\n").partition(" ")
    if word == "many":
        sys.stdout.write("".join(f"line {n}\n" for n in range(int(argument))))
    elif word == "two":
        sys.stdout.write("first\nsecond\n")
    elif word == "later":
        say("first")
        time.sleep(0.1)
        say("an afterthought")
    elif word == "half":
        sys.stdout.write("half a line")
        sys.stdout.flush()
        sys.exit(0)
    elif word == "die":
        sys.exit(3)
    elif word == "sleep":
        time.sleep(float(argument))
        say("slept")
    elif word == "twice":
        say(argument)
        say(argument)
    else:
        say(line.rstrip("\n").upper())
    if given.end:
        say(given.end)
    sys.stdout.flush()
