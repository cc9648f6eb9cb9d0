"""Facts of cores: each with its source, and some as those of another core."""

from pathlib import Path

import pytest

from sepwise.lowering.core_model import _models
from sepwise.lowering.device import FACTS_FILE
from sepwise.passes.errors import InputError


def test_a_core_needs_every_fact_with_its_source(tmp_path: Path) -> None:
    facts = tmp_path / "devices.toml"
    facts.write_text("[core.toaster]\nmodel = { value = 'toaster', source = 'a manual' }\n")
    with pytest.raises(InputError, match=r"core 'toaster': needed are .*reorder_entries.* each as { value, source }"):
        _models(facts)


def test_a_core_may_be_like_another() -> None:
    znver5, znver4 = (_models(FACTS_FILE)[cpu] for cpu in ("znver5", "znver4"))
    assert znver4.line_bytes == znver5.line_bytes
    assert znver4.reorder_entries < znver5.reorder_entries
