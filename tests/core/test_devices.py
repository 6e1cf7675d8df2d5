"""Pools whose workers compute alone leave torch's threads to whoever comes beside or after them."""

import threading

import pytest
import torch

from core.devices import each_on_one_thread, threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_search_beside_another_one_has_all_threads_and_so_has_the_next() -> None:
    seen = []
    with each_on_one_thread(2) as first:
        assert set(first.map(lambda _: torch.get_num_threads(), range(8))) == {1}
        other = threading.Thread(target=lambda: seen.append(threads(CPU)))
        other.start()
        other.join()
        with each_on_one_thread(threads(CPU)) as second:
            assert sum(second.map(lambda n: n, range(5))) == 10
        seen.append(threads(CPU))
    assert seen == [3, 3]
    assert threads(CPU) == torch.get_num_threads() == 3


def test_the_end_of_an_inner_pool_leaves_the_outer_ones_workers_alone() -> None:
    with each_on_one_thread(2) as outer:
        list(outer.map(lambda n: n, range(4)))
        with each_on_one_thread(1) as inner:
            list(inner.map(lambda n: n, range(2)))
        assert set(outer.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert torch.get_num_threads() == 3


def test_an_error_gives_up_the_rest_and_the_threads_are_given_back() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    with pytest.raises(ValueError, match="two"), each_on_one_thread(1) as pool:
        list(pool.map(work, range(1000)))
    assert torch.get_num_threads() == 3


def test_an_accelerator_takes_one_task_at_a_time() -> None:
    assert threads(torch.device("meta")) == 1
