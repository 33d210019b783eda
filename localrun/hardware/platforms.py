"""Knows no probe: the memory that a processor's platform has, by the processor's name.

What modules are in the sockets only root may ask. The platform says how many channels there are and
the fastest modules its maker supports; most machines are sold with these. Figures are recalled from
makers' pages, so a bandwidth made of them is assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Name → channels a socket and MT/s; the first that is found in the name counts.
_PLATFORMS: tuple[tuple[str, int, int], ...] = (
    (r"EPYC 9(?:[0-9]{2}5|V45)", 12, 6000),
    (r"EPYC (?:9[0-9A-Z]{2}4|Genoa)", 12, 4800),
    (r"EPYC 8[0-9]{2}4", 6, 4800),
    (r"EPYC (?:7[0-9A-Z]{2}[23]|Rome|Milan)", 8, 3200),
    (r"EPYC 7[0-9]{2}1", 8, 2666),
    (r"EPYC 4[0-9]{2}[45]", 2, 5200),
    (r"Threadripper PRO 9[0-9]{3}WX", 8, 6400),
    (r"Threadripper PRO 7[0-9]{3}WX", 8, 5200),
    (r"Threadripper PRO [35][0-9]{3}WX", 8, 3200),
    (r"Threadripper 9[0-9]{3}X", 4, 6400),
    (r"Threadripper 7[0-9]{3}X", 4, 5200),
    (r"Threadripper [1-3][0-9]{3}", 4, 2933),
    (r"Ryzen AI Max", 4, 8000),
    (r"Ryzen [3579] (?:PRO )?9[0-9]{3}", 2, 5600),
    (r"Ryzen [3579] (?:PRO )?[78][0-9]{3}", 2, 5200),
    (r"Ryzen [3579] (?:PRO )?[345][0-9]{3}", 2, 3200),
    (r"Ryzen [3579] (?:PRO )?[12][0-9]{3}", 2, 2666),
    (r"Xeon 6 ?[0-9]{4}P|Xeon 6[79][0-9]{2}P", 8, 6400),
    (r"Xeon Silver [45]5[0-9]{2}", 8, 4400),
    (r"Xeon (?:Gold|Platinum) [568]5[0-9]{2}", 8, 5200),
    (r"Xeon (?:Gold|Platinum|Silver|Bronze) [3-8]4[0-9]{2}", 8, 4800),
    (r"Xeon (?:Gold|Platinum|Silver|Bronze) [3-8]3[0-9]{2}", 8, 3200),
    (r"Xeon (?:Gold|Platinum|Silver|Bronze) [3-8][12][0-9]{2}", 6, 2666),
    (r"Xeon w[579]-[0-9]{4}", 8, 4800),
    (r"E5-[0-9]{4} ?v4", 4, 2400),
    (r"E5-[0-9]{4} ?v3", 4, 2133),
    (r"E5-[0-9]{4} ?v2", 4, 1866),
    (r"i[79]-(?:7|9|10)9[0-9]{2}XE?", 4, 2933),
    (r"Ultra [3579] 2[0-9]{2}", 2, 6400),
    (r"Ultra [3579] 1[0-9]{2}", 2, 5600),
    (r"i[3579]-1[34][0-9]{3}H", 2, 5200),
    (r"i[3579]-1[34][0-9]{3}", 2, 5600),
    (r"i[3579]-12[0-9]{3}", 2, 4800),
    (r"i[3579]-11[0-9]{3}", 2, 3200),
    (r"i[3579]-10[0-9]{3}", 2, 2933),
    (r"i[3579]-[89][0-9]{3}", 2, 2666),
    (r"i[3579]-[67][0-9]{3}", 2, 2400),
)
_SOCKETS = re.compile(r"^\s*([248])\s*x\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Platform:
    """Memory channels over all sockets and the transfers of each, in MT/s."""

    channels: int
    transfers: int
    sockets: int

    @property
    def gbps(self) -> float:
        """Theoretical bandwidth: 8 bytes a transfer and channel."""
        return self.channels * self.transfers * 8 / 1e3


def platform(cpu: str, sockets: int = 1) -> Platform | None:
    """The platform of a processor by its name; ``2x`` in front counts sockets. None if unknown."""
    counted = _SOCKETS.match(cpu)
    if counted:
        sockets = int(counted[1])
    plain = re.sub(r"\(R\)|\(TM\)|®|™|\bCPU\b", "", cpu)
    plain = re.sub(r"\s+", " ", plain)
    for pattern, channels, transfers in _PLATFORMS:
        if re.search(pattern, plain, re.IGNORECASE):
            return Platform(channels * sockets, transfers, sockets)
    return None
