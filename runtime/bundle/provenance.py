"""The parts of a manifest that decode nothing and are shown: where a bundle comes from, what
checked it.

In: a manifest's `source`, `written_by` and `verification`. Out: nothing, or a BundleError where one
lacks what `firp inspect` and `firp verify` read.
"""

from typing import Any

from firp.runtime.errors import BundleError


def check_provenance(
    source: dict[str, Any], written_by: dict[str, str], verification: dict[str, Any] | None, drafts: bool
) -> None:
    """Raises BundleError. drafts: whether the bundle has predictors, whose accuracy is recorded."""
    needed = [
        ("source: model", source.get("model"), str),
        ("source: fingerprint", source.get("fingerprint"), str),
        ("written_by: firp", written_by.get("firp"), str),
    ]
    if drafts:
        predictors = source.get("predictors")
        held_out = predictors.get("held_out") if isinstance(predictors, dict) else None
        needed.append(("source: predictors: held_out", held_out, dict))
        for name in ("top1", "top5"):
            needed.append(
                (
                    f"source: predictors: held_out: {name}",
                    held_out.get(name) if isinstance(held_out, dict) else None,
                    list,
                )
            )
    if verification is not None:
        needed += [
            (f"verification: {name}", verification.get(name), list) for name in ("checks", "near_ties")
        ]
    for where, value, kind in needed:
        if not isinstance(value, kind):
            raise BundleError(
                f"bad value at firp.json: {where}", got=f"{value!r:.60}", expected=f"a {kind.__name__}"
            )
