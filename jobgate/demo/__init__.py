"""
Bundled workers, to try jobgate with: `twistd -n jobgate --demo`.
"""

__all__ = ["invitation"]

_INVITATION = """
Four workers are waiting. In another terminal:

  curl {0}/call/words -d 'It was a bright cold day in April, and the clocks were striking thirteen.'
  curl {0}/call/calc -d '(2 ** 61 - 1) % 97 + sqrt(2)'
  curl -N {0}/call/ticker -d '{{"start": 97, "delay": 0.05}}'
  curl -X POST {0}/call/mandelbrot -o mandelbrot.png

Jobs, which are kept until they are done, and a queue that you drain yourself:

  curl {0}/push/ticker -d '{{"start": 27, "delay": 0.2}}'      says its id
  curl {0}/jobs/ID                                           how it is doing
  curl -N {0}/jobs/ID/events                                 and what happens to it
  curl '{0}/jobs/ID/result?wait=30'                          its reply

  curl '{0}/pull/letters?wait=60'                            waits; in a third terminal:
  curl {0}/push/letters -d 'hello'

  curl {0}/workers        who works, at what, since when
  curl {0}/metrics        everything that is counted
  curl {0}/openapi.json   the whole interface

Ctrl-C finishes what has been accepted, then stops.

"""


def invitation(address: str) -> str:
    """The `curl` lines to try the demo with, for a gate at `address`."""
    return _INVITATION.format(address)
