import asyncio
import threading
import time

import pytest

from launch.serve.batcher import Batcher, FullError, _Asked


def doubled(tasks):
    return [2 * task for task in tasks]


def test_what_comes_while_a_batch_is_worked_on_goes_together_and_everybody_gets_their_own_answer():
    sizes = []

    def slow(tasks):
        time.sleep(0.02)
        return doubled(tasks)

    batcher = Batcher(slow, 8, 0.0, 100, sizes.append)

    async def callers():
        return await asyncio.gather(*(batcher.ask([number, 100 + number]) for number in range(20)))

    assert asyncio.run(callers()) == [[2 * number, 200 + 2 * number] for number in range(20)]
    batcher.close()
    assert sum(sizes) == 40
    assert max(sizes) == 8
    assert len(sizes) <= 8


def test_a_thread_that_was_idle_waits_for_company():
    sizes = []
    batcher = Batcher(doubled, 2, 5.0, 10, sizes.append)

    async def callers():
        first = asyncio.create_task(batcher.ask([1]))
        await asyncio.sleep(0.05)
        return await asyncio.gather(first, batcher.ask([2]))

    assert asyncio.run(callers()) == [[2], [4]]
    assert sizes == [2]
    batcher.close()


def test_a_full_queue_refuses_at_once_all_or_nothing_and_what_callers_left_is_not_worked_on():
    entered, go, worked = threading.Event(), threading.Event(), []

    def held(tasks):
        entered.set()
        assert go.wait(10)
        worked.extend(tasks)
        return doubled(tasks)

    batcher = Batcher(held, 1, 0.0, 3)

    async def callers():
        first = asyncio.create_task(batcher.ask([1]))
        await asyncio.to_thread(entered.wait, 10)
        second = asyncio.create_task(batcher.ask([2, 3]))
        left = asyncio.create_task(batcher.ask([4]))
        await asyncio.sleep(0.01)
        assert batcher.full
        left.cancel()
        with pytest.raises(FullError):
            await batcher.ask([5, 6])
        go.set()
        return await asyncio.gather(first, second)

    assert asyncio.run(callers()) == [[2], [4, 6]]
    batcher.close()
    assert worked == [1, 2, 3]


def test_very_many_callers_that_left_at_once_do_not_end_the_thread():
    batcher = Batcher(doubled, 1, 0.0, 10_000)

    async def callers():
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        batcher._queue += [_Asked(0, gone)] * 3000
        return await asyncio.wait_for(batcher.ask([1]), 30)

    assert asyncio.run(callers()) == [2]
    batcher.close()


def test_a_task_that_fails_spoils_no_other_of_its_batch():
    def divided(tasks):
        return [6 // task for task in tasks]

    batcher = Batcher(divided, 8, 0.05, 10)

    async def callers():
        return await asyncio.gather(*(batcher.ask([n]) for n in (1, 0, 2, 0, 3)), return_exceptions=True)

    found = asyncio.run(callers())
    assert [each for each in found if isinstance(each, list)] == [[6], [3], [2]]
    assert [type(each) for each in found] == [list, ZeroDivisionError, list, ZeroDivisionError, list]
    batcher.close()


def test_a_batcher_that_closes_answers_what_it_took_and_refuses_the_rest():
    def slow(tasks):
        time.sleep(0.01)
        return doubled(tasks)

    batcher = Batcher(slow, 1, 0.0, 100)

    async def callers():
        taken = asyncio.gather(*(batcher.ask([number]) for number in range(5)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        answers = await taken
        await closing
        with pytest.raises(FullError):
            await batcher.ask([1])
        return answers

    assert asyncio.run(callers()) == [[2 * number] for number in range(5)]
    assert not batcher.alive
