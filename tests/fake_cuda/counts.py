"""What a process on the fake CUDA device has launched, copied and waited for."""

import contextlib
import ctypes
import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_MANGLED = "_Z"


@dataclass
class Counts:
    """Counts between two moments.

    Attributes:
        numbers: by the names in ``csrc/fake.h``; each is also an attribute of that name.
        launched: kernels and library calls by (demangled) name.
        captured: likewise, recorded into graphs.
    """

    numbers: Counter[str] = field(default_factory=Counter)
    launched: Counter[str] = field(default_factory=Counter)
    captured: Counter[str] = field(default_factory=Counter)

    def __getattr__(self, name: str) -> int:
        if name.startswith("_") or name not in self.numbers:
            raise AttributeError(f"no counter {name!r}: there are {', '.join(self.numbers)}")
        return self.numbers[name]

    @property
    def launches(self) -> int:
        """What the host has given the device to do: kernels, library calls, memsets, copies, graphs."""
        copies = self.copies_to_device + self.copies_to_host + self.copies_on_device
        return self.kernels + self.library_calls + self.memsets + self.graph_launches + copies

    @property
    def blocking_copies(self) -> int:
        """Copies that the host has waited for."""
        return self.blocking_copies_to_device + self.blocking_copies_to_host

    def __sub__(self, earlier: "Counts") -> "Counts":
        numbers = Counter({name: value - earlier.numbers[name] for name, value in self.numbers.items()})
        return Counts(numbers, self.launched - earlier.launched, self.captured - earlier.captured)


def is_fake() -> bool:
    """Whether this process is on the fake device."""
    return hasattr(ctypes.CDLL(None), "fake_cuda_counters")


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens in the block; the numbers are there when it ends."""
    counts, before = Counts(), read_counts()
    try:
        yield counts
    finally:
        between = read_counts() - before
        counts.numbers, counts.launched, counts.captured = between.numbers, between.launched, between.captured


def read_counts() -> Counts:
    """Everything since the process began.

    Raises:
        RuntimeError: this process is not on the fake device.
    """
    library = _library()
    counts = Counts()
    first, second = ctypes.c_long(), ctypes.c_long()
    for index in range(library.fake_cuda_counters()):
        name = library.fake_cuda_counter(index, ctypes.byref(first))
        counts.numbers[name.decode()] = first.value
    for index in range(library.fake_cuda_tallies()):
        name = _demangled(library.fake_cuda_tally(index, ctypes.byref(first), ctypes.byref(second)))
        counts.launched[name] += first.value
        counts.captured[name] += second.value
    return counts


@functools.cache
def _library() -> ctypes.CDLL:
    if not is_fake():
        raise RuntimeError("this process is not on the fake CUDA device: start it by tests.fake_cuda.processes")
    library = ctypes.CDLL(None)
    library.fake_cuda_counter.restype = library.fake_cuda_tally.restype = ctypes.c_char_p
    return library


@functools.cache
def _demangled(name: bytes) -> str:
    if not name.decode().startswith(_MANGLED):
        return name.decode()
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    made = demangle(name, None, None, ctypes.byref(status))
    if status.value:
        return name.decode()
    # A few hundred kernels: what the demangler has allocated may stay.
    return ctypes.string_at(made).decode()
