"""Plain against drafted: what differs is told, with its margin, and only a near tie is excused."""

import numpy as np
import pytest

from firp.runtime.commands.bench import print_bench
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.tuning import bench as bench_module
from firp.runtime.tuning.bench import bench
from firp.runtime.tuning.parity import PlainRun

PROMPTS = [[5, 6, 7], [9, 8]]


@pytest.fixture
def engine(family_bundle):
    return Engine.load(family_bundle("llama")[1])


def test_equal_runs(engine):
    result = bench(engine, PROMPTS, SamplingParams(20, ignore_eos=True))
    shown = result.to_json()
    assert shown["identical"]
    assert shown["differing_prompts"] == 0
    assert shown["near_ties"] == []
    assert shown["cuda_graphs"] is None
    assert shown["tokens"] == 2 * 19
    assert shown["plain"]["tokens_per_step"] == 1


@pytest.mark.parametrize(("margin", "near"), [(1e-6, True), (0.5, False)])
def test_a_difference_is_excused_by_its_margin_alone(margin, near, engine, monkeypatch, capsys):
    params, real = SamplingParams(20, ignore_eos=True), engine.generate

    def generate(prompt, params, plain=False, tree=None):
        result = real(prompt, params, plain=plain, tree=tree)
        if not plain and prompt == PROMPTS[1] and params.max_new_tokens == 20:
            result.token_ids[4] = (result.token_ids[4] + 1) % 190
        return result

    monkeypatch.setattr(engine, "generate", generate)
    tokens = real(PROMPTS[1], params, plain=True).token_ids
    monkeypatch.setattr(bench_module, "plain_run", lambda *_: PlainRun(tokens, np.full(20, margin).tolist()))
    result = bench(engine, PROMPTS, params)
    (difference,) = result.differences
    assert (difference.prompt, difference.position, difference.near_tie) == (1, 4, near)
    assert not result.to_json()["identical"]
    assert len(result.to_json()["near_ties"]) == near
    print_bench(result)
    assert f"{'near tie' if near else 'difference'}: prompt 2, token 4" in capsys.readouterr().out
