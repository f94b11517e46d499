"""What `firp export` says of models that take long to load."""

import pytest
from click.testing import CliRunner
from support.family_models import save_family

from firp.calib.commands.export import export


@pytest.mark.parametrize(("most", "said"), [(11, True), (12, False)])
def test_many_experts_are_said_before_anything_is_written(most, said, tmp_path, monkeypatch):
    monkeypatch.setattr("firp.calib.commands.export._MANY_EXPERTS", most)
    model = save_family(tmp_path / "model", "mixtral")  # 3 layers of 4
    arguments = [str(model), "-o", str(tmp_path / "bundle"), "--no-verify"]
    lines = CliRunner().invoke(export, arguments).output
    assert ("12 experts, each a branch of its graph" in lines) == said
    assert not said or lines.index("12 experts") < lines.index("wrote")
