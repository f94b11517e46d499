"""Prediction layers that a sweep tries (the paper's Figure 5), and its budget.

An early split gives better drafts and costs more, since pseudo rows run through more layers; so the
layer with the highest expected tokens per second wins, not the most accurate one
(firp.calib.replay.evaluation, `layer_findings`).
"""

SHARE = 0.25  # of the training budget, for all layers together
_FRACTIONS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


def layers_to_try(num_hidden_layers: int) -> list[int]:
    """Prediction layers for a sweep: at most six, from a quarter of the layers on."""
    return sorted(
        {min(max(1, round(num_hidden_layers * share)), num_hidden_layers - 1) for share in _FRACTIONS}
    )
