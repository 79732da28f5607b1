"""
A worker whose run takes 10 ms, however many commands are in it: a model on a GPU.
"""

import time

from jobgate.worker import Command, serve

SECONDS = 0.01


def run(commands: list[Command]) -> list[bytes]:
    """
    Give every command its own body back, all after the same time.
    """
    time.sleep(SECONDS)
    return [command.body for command in commands]


serve(run, batch=True)
