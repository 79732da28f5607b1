"""
How offensive is a text? A linear model over its words, trained on 200,000 comments.

The model lies inside the package `alt-profanity-check`; nothing is downloaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from profanity_check import predict_prob

from jobgate.worker import Fail, serve

if TYPE_CHECKING:
    from jobgate.worker import Command


def moderate(commands: list[Command]) -> list[object]:
    replies: list[object] = [Fail("the body is no UTF-8 text", status=422)] * len(commands)
    texts = {}
    for place, command in enumerate(commands):
        try:
            texts[place] = command.body.decode()
        except UnicodeDecodeError:
            continue
    if texts:
        chances = predict_prob(list(texts.values()))
        for place, chance in zip(texts, chances, strict=True):
            replies[place] = {"offensive": round(float(chance), 6)}
    return replies


if __name__ == "__main__":
    serve(moderate, batch=True)
