"""The confidence order of DSI as a loop over one image at a time."""

from __future__ import annotations

import numpy as np


def literal_order(
    plain: list[list[float]], translated: list[list[list[list[float]]]], threshold: float, unsure: str
) -> tuple[list[list[float]], list[int]]:
    """One image at a time. `translated[s][d][i]`: logits of image i from start step s by the LDM of source d."""
    chosen, accepted = [], []
    for i, own in enumerate(plain):
        answer, where = own, -1
        if max(softmax(own)) > threshold:
            where = 0
        else:
            for s, by_source in enumerate(translated):
                several = [own] + [logits[i] for logits in by_source]
                mean = [sum(values) / len(several) for values in zip(*several, strict=True)]
                if max(softmax(mean)) > threshold:
                    answer, where = mean, s + 1
                    break
                if unsure == "last":
                    answer = mean
        chosen.append(answer)
        accepted.append(where)
    return chosen, accepted


def softmax(logits: list[float]) -> list[float]:
    powers = np.exp(np.array(logits, dtype=np.float64))
    return (powers / powers.sum()).tolist()
