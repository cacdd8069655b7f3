"""The floors of the inference API's speed, as ratios of servers that take turns on one machine; `make bench` says more, and longer."""

import bench_serve
import pytest


@pytest.fixture(scope="module")
def ratios():
    return bench_serve.judged(bench_serve.measure(rounds=2, seconds=1.2, sample=4000, shadow_rounds=0)[0]).set_index("ratio")


@pytest.mark.parametrize("number", range(len(bench_serve.ROWS)))
def test_the_floor_holds(ratios, number):
    one = ratios.iloc[number]
    assert one["holds"], f"{one.name}: {one['ours']:.2f}, {one['bound']:g} is promised"
