"""Gives back what it is given."""

from jobgate.worker import serve

serve(lambda command: command.body)
