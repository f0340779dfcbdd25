"""Energy of this machine's processors, as they count it themselves (RAPL), where the kernel lets it be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class EnergyMeter:
    """Reads the counters of all processor packages, from its creation to `joules`."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
        self._begin = [_number(zone / "energy_uj") for zone in self._packages]

    def joules(self) -> float | None:
        """Return what all packages have used since; None if there are no counters or one cannot be read.

        A counter that has begun again at zero since, once, is recognised.
        """
        used = 0
        for zone, begin in zip(self._packages, self._begin, strict=True):
            end = _number(zone / "energy_uj")
            if begin is None or end is None:
                return None
            used += end - begin if end >= begin else end - begin + (_number(zone / "max_energy_range_uj") or 0)
        return used / 1e6 if self._packages else None


def machine() -> str:
    """Return what all processes of one machine share, on emulated nodes too: the id of its last boot."""
    return _text(BOOT_ID)


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None
