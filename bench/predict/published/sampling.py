"""Draw settings from the ranges of what a source does not state."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from typing import Any

from bench.predict.published.corpus import Arm
from bench.predict.published.ranges import Value, at
from bench.predict.published.settings import Settings

SAMPLES = 64


def draw(arm: Arm, samples: int = SAMPLES) -> list[Settings]:
    """Return settings of an arm, one for each sample: what is stated, and a value from each range.

    Latin hypercube: each range is divided into as many parts of equal probability as there are samples. The order is
    that of the range's and the setting's name, so that two arms that share a range have the same value in a sample.
    """
    shares = {key: _shares(f"{key} {found.name}", samples) for key, found in arm.ranges.items()}
    return [
        settings(arm, {key: at(found, shares[key][index]) for key, found in arm.ranges.items()})
        for index in range(samples)
    ]


def middle(arm: Arm, **replaced: Value) -> Settings:
    """Return settings with the middle of every range, some of them replaced."""
    return settings(arm, {**{key: at(found, 0.5) for key, found in arm.ranges.items()}, **replaced})


def settings(arm: Arm, values: Mapping[str, Any]) -> Settings:
    """Return the settings of an arm with values for its ranges."""
    return Settings.model_validate({**arm.stated, **values})


def _shares(name: str, samples: int) -> list[float]:
    order = list(range(samples))
    random.Random(zlib.crc32(name.encode())).shuffle(order)
    return [(part + 0.5) / samples for part in order]
