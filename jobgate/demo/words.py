"""
Count the words of a text.

    curl http://127.0.0.1:8080/call/words --data-binary @README.md
"""

from __future__ import annotations

import re
from collections import Counter

from jobgate.worker import Command, Fail, serve

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
SENTENCE = re.compile(r"[.!?…]+(?:\s|$)")
WORDS_A_MINUTE = 230  # of a practised reader


def count(command: Command) -> dict[str, object]:
    """
    Say how long a text is, which words it likes best, and how long reading it takes.
    """
    try:
        text = command.body.decode()
    except UnicodeDecodeError as error:
        detail = f"byte {error.start}: {error.reason}"
        raise Fail("the text is not UTF-8", detail, 422, retry=False) from None
    words = [word.casefold() for word in WORD.findall(text)]
    return {
        "characters": len(text),
        "lines": len(text.splitlines()),
        "words": len(words),
        "sentences": len(SENTENCE.findall(text)),
        "different_words": len(set(words)),
        "longest_word": max(words, key=len, default=""),
        "most_common": dict(Counter(words).most_common(10)),
        "reading_seconds": round(60 * len(words) / WORDS_A_MINUTE, 1),
    }


if __name__ == "__main__":
    serve(count)
