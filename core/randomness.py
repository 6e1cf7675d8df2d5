"""Random numbers without state: every draw is a function of what it is for."""

import hashlib
import zlib

import numpy as np


def stream(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """The generator of one draw: Philox keyed by (seed, purpose), counted by up to three numbers.

    The counters are for example (step, sample, view). Nothing is carried from one draw to the next, so a resumed
    run, another worker count or another batch cannot change what a sample gets.
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    words = [0, *counters, 0, 0, 0][:4]
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(words, dtype=np.uint64)))


def number_of(subject_id: str) -> int:
    """A number below 2^62 that stands for a subject in the counters of `stream`.

    It comes from the id alone, so what is drawn for a subject stays the same whoever else is in the cohort.
    """
    digest = hashlib.blake2b(subject_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
