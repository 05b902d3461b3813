"""Several processes that train one model, each on a part of every batch; one process, unless `torchrun` started more.

All processes have the same weights. Each computes the loss of its own questions; what they add up is equal in all. Only
the first one writes. Everything here is the identity in a single process.

Not `DistributedDataParallel`: a method is not called by its `forward`, and which parameters get a gradient depends on
the batch. Here the gradients are added up after the backward pass (`train.training.optimisation`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as group
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import UserError, one_line
from pipeline.files import locked

# The variables that `torchrun`, or another launcher, sets.
STARTED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LONGEST_START = timedelta(minutes=10)
# A process waits for the others while one of them decodes features for the cache.
LONGEST_WAIT = timedelta(hours=12)

Value = TypeVar("Value")


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` started for the block; no effect if it did not start this one.

    Raises `UserError` if some of them do not join, or end before this one needs them for the last time.
    """
    if _count_started() == 1:
        yield
        return
    # Of a GPU's tensors through NCCL, of others through Gloo.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, own_rank, number = next(rendezvous("env://", timeout=LONGEST_START))
    except group.DistError as error:
        raise UserError(
            f"the {_count_started()} processes of WORLD_SIZE did not join ({one_line(error)}): start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from None
    with _naming_ended():
        group.init_process_group(backend, store=store, rank=own_rank, world_size=number, timeout=LONGEST_WAIT)
    try:
        with _naming_ended():
            yield
    finally:
        group.destroy_process_group()


def check_alone(command: str) -> None:
    """Raise `UserError` if `torchrun` started several processes of a `command` that runs in one."""
    if _count_started() > 1:
        raise UserError(f"{command} runs in one process, {_count_started()} were started: start it without torchrun")


def _count_started() -> int:
    return int(os.environ["WORLD_SIZE"]) if STARTED.issubset(os.environ) else 1


@contextmanager
def _naming_ended() -> Iterator[None]:
    """Turn the error of a process that waits for another one, which has ended, into one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, group.DistError) and "gloo/transport" not in str(error):
            raise
        raise UserError("another process of the training has ended: see its output for the cause") from None


def count() -> int:
    """Return the number of processes."""
    return group.get_world_size() if group.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return group.get_rank() if group.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is the process that writes."""
    return rank() == 0


def own_part(rows: int) -> slice:
    """Return which of `rows` rows are this process's: they divide them evenly, in order.

    Fewer rows than processes are not divided: each process takes all, so that none is without a batch (`weight`).
    """
    if rows < count():
        return slice(0, rows)
    return slice(rows * rank() // count(), rows * (rank() + 1) // count())


def weight(rows: int) -> float:
    """Return what each of this process's part of `rows` rows counts in a sum over the processes."""
    return 1.0 if rows >= count() else 1 / count()


def add_up(values: Tensor) -> Tensor:
    """Return the sum of `values` over the processes, of the same shape."""
    if count() == 1:
        return values
    total = values.detach().clone()
    group.all_reduce(total)
    return total


def mean_rows(rows: Tensor) -> Tensor | None:
    """Return the mean of the `rows` [row, ...] of all processes; None if none has a row."""
    if count() == 1:
        return rows.float().mean(0) if len(rows) else None
    sums = rows.float().sum(0)
    total = add_up(torch.cat((sums.flatten(), sums.new_tensor([len(rows)]))))
    return (total[:-1] / total[-1]).view_as(sums) if total[-1] > 0 else None


def select_rows(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the `chosen` (int64 [number]) of the `rows` [row, ...] of all processes, which are numbered in order."""
    if count() == 1:
        return rows[chosen]
    lengths = collect(len(rows))
    own = chosen - sum(lengths[: rank()])
    is_own = (own >= 0) & (own < len(rows))
    selected = rows.new_zeros(len(chosen), *rows.shape[1:])
    selected[is_own] = rows[own[is_own]]
    return add_up(selected)


def collect(value: Value) -> list[Value]:
    """Return the picklable `value` of each process."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    group.all_gather_object(values, value)
    return values


def interleave(values: list[Value]) -> list[Value]:
    """Return the values of all processes in order, of which each has every `count()`-th, from number `rank()` on."""
    parts = collect(values)
    merged: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        merged[number :: count()] = part
    return merged


def of_first(work: Callable[[], Value]) -> Value:
    """Return what `work` returns in the first process; the others wait for it. An error in it is raised in all."""
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except Exception as error:  # noqa: BLE001  # raised below
            outcome[1] = error
    if count() > 1:
        group.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    value: Value = outcome[0]
    return value


@contextmanager
def locked_by_first(folder: Path, used_by: str) -> Iterator[None]:
    """Let the first process hold the lock of `folder` while all are in the block (`pipeline.files.locked`)."""
    with ExitStack() as held:
        of_first(lambda: held.enter_context(locked(folder, used_by)))
        yield
        wait()


def wait() -> None:
    """Wait until every process is here."""
    collect(None)
