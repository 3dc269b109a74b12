"""A decoding process: `python -m dist_train.data.worker PLAN TASKS RESULTS MEMORY NUMBER`, each but the last an fd.

Started by `dist_train.data.pool`, which describes the traffic. It imports neither torch nor the program that trains.
"""

import json
import os
import pickle
import sys
import time

import cv2

from dist_train.data.assemble import Assembler, BatchPlan
from dist_train.data.bad_samples import BadSample
from dist_train.data.exchange import TASK, Board, positions_of
from dist_train.errors import UserError, WorkError

_MESSAGE_BYTES = 4096  # PIPE_BUF: writes up to this size arrive whole, whoever else writes
_TEXT = 1000  # characters of a path or a reason in a message


def main(arguments: list[str]) -> int:
    """Work off tasks until there are no more; the exit status."""
    plan_fd, tasks, results, memory, number = map(int, arguments)
    cv2.setNumThreads(0)
    with os.fdopen(plan_fd, "rb") as file:
        plan, batch_size, slots, workers = pickle.load(file)
    try:
        form = slots, plan.views, batch_size, plan.image_size, workers, plan.config.labels_per_sample
        _serve(plan, Board(memory, *form), tasks, results, number)
    except BrokenPipeError:
        return 0  # the trainer has gone
    except (WorkError, UserError) as error:
        _send(results, ["failed", number, str(error)[: 3 * _TEXT]])
        return 1
    except Exception as error:
        _send(results, ["failed", number, f"{type(error).__name__}: {error}"[: 3 * _TEXT]])
        raise
    return 0


def _serve(plan: BatchPlan, board: Board, tasks: int, results: int, number: int) -> None:
    assembler = Assembler(plan)
    # Reads of whole records from a pipe do not interleave: all workers take tasks from one pipe, without a lock that
    # a killed worker could keep.
    while len(record := os.read(tasks, TASK.size)) == TASK.size:
        first, slot, start, count = TASK.unpack(record)
        board.working[number] = (first + start, time.monotonic_ns())
        rows = slice(start, start + count)
        arrays = (board.images[slot, :, rows], board.labels[slot, rows], board.sources[slot, rows])
        bad = assembler.fill(positions_of(first, start, count), *arrays)
        for each in bad:
            _send(results, ["bad", slot, *_shortened(each)])
        board.working[number] = (-1, 0)
        _send(results, ["done", slot])
    assembler.close()


def _shortened(bad: BadSample) -> BadSample:
    return bad._replace(shard=bad.shard[-_TEXT:], key=bad.key[:_TEXT], reason=bad.reason[:_TEXT])


def _send(results: int, message: list[object]) -> None:
    data = json.dumps(message, ensure_ascii=False).encode(errors="replace") + b"\n"
    if len(data) > _MESSAGE_BYTES:
        data = json.dumps([*message[:-1], "(a reason too long to report)"]).encode() + b"\n"
    os.write(results, data[:_MESSAGE_BYTES])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
