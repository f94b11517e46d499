"""Sums over a shortlist are those over the vocabulary, on the average over samples."""

import torch
import torch.nn.functional as F

from firp.calib.training.shortlist import SAMPLED, WHOLE, make_shortlist


def test_a_small_vocabulary_is_compared_whole():
    torch.manual_seed(0)
    teacher, logits = F.log_softmax(torch.randn(4, WHOLE), -1), torch.randn(4, WHOLE)
    shortlist = make_shortlist(teacher.topk(3).indices, WHOLE, torch.Generator())
    student = shortlist.log_probabilities(logits)
    torch.testing.assert_close(student, F.log_softmax(logits, -1))
    expected = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(shortlist.divergence(teacher, student), expected)


def test_a_large_vocabulary_holds_the_likely_tokens_and_a_sample_for_the_others():
    vocab_size = 50_000
    torch.manual_seed(0)
    teacher = F.log_softmax(3 * torch.randn(6, vocab_size), -1)
    student = F.log_softmax(teacher + 0.5 * torch.randn(6, vocab_size), -1)
    likely = teacher.topk(32).indices
    totals, divergences = [], []
    for seed in range(60):
        shortlist = make_shortlist(likely, vocab_size, torch.Generator().manual_seed(seed))
        tokens = shortlist.tokens
        assert set(likely.flatten().tolist()) <= set(tokens.tolist())
        assert len(tokens) <= likely.numel() + SAMPLED
        totals.append((student[:, tokens] + shortlist.log_weight).exp().sum(-1))
        divergences.append(shortlist.divergence(teacher[:, tokens], student[:, tokens]))
    torch.testing.assert_close(torch.stack(totals).mean(0), torch.ones(6), rtol=0.03, atol=0)
    exact = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(torch.stack(divergences).mean(0), exact, rtol=0.08, atol=0)


def test_samples_are_drawn_by_the_generator():
    likely = torch.arange(10)
    one, same, other = (make_shortlist(likely, 20_000, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.tokens, other.tokens)
