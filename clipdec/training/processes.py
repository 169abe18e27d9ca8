"""Which share of the work is this process's, and putting the shares together again. With one process, all of it."""

import multiprocessing

import accelerate
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch.distributed.elastic.utils.distributed import get_free_port
from tqdm.auto import tqdm


def launch(count, cpu, work, *arguments):
    """Call work(*arguments) in `count` processes, on the CPU or on a GPU each, that are forked from this one.

    Where a notebook has one device only, as in Colab, accelerate calls it in this process instead.

    Raises: ValueError where no process can be forked, as from one that has used a GPU.
    """
    remedy = f"use `accelerate launch --multi_gpu --num_processes {count} -m clipdec.training --config run.json`"
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"processes {count}: this system cannot fork the processes that train together: {remedy}")
    if not cpu and torch.cuda.is_initialized() and torch.cuda.device_count() > 1:
        used = "this process has used a GPU, after which none can be forked from it"
        raise ValueError(f"processes {count}: {used}: restart it (the kernel) and call fit first, or {remedy}")
    AcceleratorState._reset_state(reset_partial_state=True)  # left by a run in this process, in the launcher's way
    options = {"num_processes": count, "use_port": str(get_free_port())}
    accelerate.notebook_launcher(_launched, (cpu, work, *arguments), **options)


def _launched(cpu, work, *arguments):
    join(cpu)
    if rank_and_count()[1] > 1:
        torch.set_num_threads(1)  # OpenMP would wait for ever for the threads of the process that this is forked from
    work(*arguments)


def join(cpu):
    """Find the other processes, if a launcher has started this one."""
    accelerate.PartialState(cpu=cpu)


def rank_and_count():
    """(number of this process, number of processes), (0, 1) outside a launcher."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_main():
    return rank_and_count()[0] == 0


def share(rows):
    """This process's part of a tensor's rows: consecutive ones, of every process nearly as many."""
    rank, count = rank_and_count()
    return rows.tensor_split(count)[rank]


def gather(rows, total):
    """The shares of all processes as one tensor of `total` rows, each once and in order; gradients flow back to
    them.
    """
    _, count = rank_and_count()
    if count == 1 or not total:
        return rows
    sizes = [len(part) for part in torch.arange(total).tensor_split(count)]
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, sizes[0] - len(rows)))  # all must be as long as the first
    parts = _AllGather.apply(padded.to(_device()))
    return torch.cat([part[:size] for part, size in zip(parts, sizes)]).to(rows.device)


class _AllGather(torch.autograd.Function):
    """Rows [n, ...] of every process as [processes, n, ...]; back come the gradients of all for the own ones."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient):
        return add_up(gradient.clone())[dist.get_rank()]


def add_up(values):
    """The sum of a tensor over all processes."""
    if rank_and_count()[1] > 1:
        values = values.to(_device())
        dist.all_reduce(values)
    return values


def _device():
    """Where the tensors must be that processes exchange."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def wait():
    """Return when all processes have come here."""
    if rank_and_count()[1] > 1:
        dist.barrier()


def progress(iterable, desc, **options):
    """A tqdm bar, in the main process, of what takes more than a second, gone when done.

    One refresh a second: in a notebook each is several messages, and a client that reads them only after the cell, as
    nbval does, loses those that its queue cannot hold, and with them the one that says that the cell has ended.
    """
    options = {"total": len(iterable) if hasattr(iterable, "__len__") else None} | options
    iterator = iter(iterable)  # of a loader tqdm would make two, each with its processes
    return tqdm(iterator, desc, leave=False, delay=1.0, mininterval=1.0, disable=not is_main(), **options)
