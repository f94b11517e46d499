"""The device that trains: whether it is there, what memory it has left, how many threads are worth
their waiting.

In: a device's name as torch has it, sizes. Out: bytes, thread counts, or a FirpError.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from firp.runtime.errors import FirpError
from firp.runtime.machine import available_bytes

# Floating-point operations of one matrix product for which another thread is worth while: a
# millisecond or so of a core, against the tens of microseconds that it takes to wake a thread and,
# beside other busy processes, the time slice until it runs.
THREAD_FLOPS = 50_000_000


def check_device(device: str) -> None:
    """Raises FirpError for a device that this machine lacks, or that is neither a CPU nor a CUDA
    GPU.
    """
    try:
        if torch.empty(1, device=device).device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither cpu nor cuda")
    except (RuntimeError, AssertionError) as error:
        raise FirpError(
            "cannot use the device", got=f"{device}: {str(error).splitlines()[0]:.100}", fix="--device cpu"
        ) from error


def available_memory(device: str) -> int | None:
    """Free bytes; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def worthwhile_threads(rows: int, hidden_size: int, most: int) -> int:
    """Threads, from 1 to `most`, that pay for products of [rows, hidden_size] by a square matrix,
    which are the smallest ones of a decoder layer.
    """
    return max(1, min(most, 2 * rows * hidden_size**2 // THREAD_FLOPS))


@contextmanager
def threads_for(rows: int, hidden_size: int) -> Iterator[None]:
    """Let torch use as many threads as are worth while, and never more than before; afterwards it
    uses as many as before. Threads of small operations wait for each other most of the time: beside
    one busy process that made training twenty times slower, not twice.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(worthwhile_threads(rows, hidden_size, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
