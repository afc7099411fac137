"""What can go wrong in an emulated kernel."""


class EmulatorError(RuntimeError):
    """A kernel did something that fails on a GPU, or the emulator cannot run it."""


class UnsupportedPtx(EmulatorError, NotImplementedError):
    """An opcode, modifier, type or construct that the emulator does not know. It never guesses."""


class OutOfBounds(EmulatorError, IndexError):
    """An access outside the tensors of the launch, or outside the memory that the launch asked for."""


class MisalignedAccess(EmulatorError):
    """An access at an address that is not a multiple of its width."""


class Divergence(EmulatorError):
    """A barrier or a warp operation that not all of its threads reach."""


class DataRace(EmulatorError):
    """Accesses to shared memory by two threads with no barrier between them."""


class Deadlock(EmulatorError):
    """A loop that does not end."""


class Trap(EmulatorError):
    """The kernel executed ``trap``, as a failed ``tl.device_assert`` does."""


class OutOfResources(EmulatorError):
    """More shared memory or threads than the architecture has."""
