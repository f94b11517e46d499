"""The library transformers, as firp uses it: without its progress bars and advice, which are not
ours to show.
"""


def quiet_transformers() -> None:
    """Import torch and transformers, and silence the latter. Raises ModuleNotFoundError where one
    is missing.
    """
    import torch  # noqa: F401  without it, transformers itself imports and fails later
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
