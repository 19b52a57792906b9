"""Every shipped config, stage by stage, at its real size on the hardware that it names: it is built, trains and fits.

The memory is that of torch's real allocator; the other ranks are a fake process group.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_repository import CONFIGS
from tools.nogpu.fit import HARDWARE, RECIPES, USABLE, Case, shipped

done: dict[str, dict[str, Any]] = {}
"""What was seen, by all that it depends on."""


def test_every_config_names_its_hardware() -> None:
    configs = {path.stem: path.read_text() for path in CONFIGS if path.parent.name == "configs"}
    assert configs.keys() == HARDWARE.keys()
    for config, hardware in HARDWARE.items():
        assert config in ("tiny", "extend-tiny") or str(hardware) in configs[config], config


def name(case: Case) -> str:
    return ", ".join((case.config, case.stage, str(case.hardware)))


@pytest.mark.parametrize("case", [*shipped(), *RECIPES], ids=name)
def test_a_stage_fits_its_hardware(case: Case) -> None:
    if case.key not in done:
        done[case.key] = case.run()
    seen = done[case.key]
    assert not {"failed", "out_of_memory"} & seen.keys(), seen.get("failed") or seen["out_of_memory"]
    assert 0 < seen["peak"] <= seen["reserved"] <= USABLE[case.hardware.memory]
    assert seen["launches"] > 0
    assert seen["waits"] == {}
    assert seen["contexts"] == []
