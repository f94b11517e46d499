"""Logprobs of the model's own distribution."""

import numpy as np
import pytest
import torch

from firp.runtime.picking.logprobs import token_logprob


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_logprobs_are_those_of_a_softmax(top):
    row = np.random.default_rng(top).normal(size=300).astype(np.float32) * 4
    expected = torch.from_numpy(row).double().log_softmax(-1)
    values, ids = expected.topk(top)
    found = token_logprob(row, 17, top)
    assert found.token_id == 17
    assert found.logprob == pytest.approx(float(expected[17]), abs=1e-6)
    assert [token for token, _ in found.top] == ids.tolist()
    np.testing.assert_allclose([logprob for _, logprob in found.top], values.numpy(), atol=1e-6)


def test_the_lower_id_comes_first_among_equals_and_there_are_no_more_than_tokens():
    found = token_logprob(np.array([1, 3, 3, 3], np.float32), 0, 2)
    assert [token for token, _ in found.top] == [1, 2]
    assert len(token_logprob(np.zeros(4, np.float32), 0, 20).top) == 4
