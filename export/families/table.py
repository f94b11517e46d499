"""The families that can be exported, by the model_type of config.json. Names that are another row's stand
in `wrappers.LOADED_AS`.
"""

from firp.export.families.experts import EXPERTS
from firp.export.families.gated import GATED
from firp.export.families.latent import LATENT
from firp.export.families.plain import PLAIN_MLP
from firp.export.families.recipe import Family
from firp.export.families.stacked import STACKED

FAMILIES: dict[str, Family] = GATED | PLAIN_MLP | EXPERTS | STACKED | LATENT
