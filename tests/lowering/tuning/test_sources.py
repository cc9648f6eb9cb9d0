"""The digest of the sources that schedule kernels."""

from pathlib import Path

import pytest

from sepwise.lowering.tuning.sources import digest_sources, own_sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("build.py", "strategies/dense.py", "tuning/search.py", "peers/table.py"):
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"NAME = '{name}'\n")
    return tmp_path / "one"


def test_it_is_the_same_wherever_the_package_lies(package: Path) -> None:
    before = digest_sources(package)
    (package / "notes.txt").write_text("no source")
    assert digest_sources(package.rename(package.with_name("other"))) == before
    assert len(before) == 12


@pytest.mark.parametrize("name", ["build.py", "strategies/dense.py", "strategies/another.py", "runtime/pool.c"])
def test_it_changes_with_what_schedules(package: Path, name: str) -> None:
    before = digest_sources(package)
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("TILE = 8\n")
    assert digest_sources(package) != before


def test_it_changes_with_names(package: Path) -> None:
    before = digest_sources(package)
    (package / "build.py").rename(package / "link.py")
    assert digest_sources(package) != before


@pytest.mark.parametrize("name", ["tuning/search.py", "peers/another.py", "remote.py"])
def test_what_has_no_part_in_kernels_is_no_matter(package: Path, name: str) -> None:
    before = digest_sources(package)
    (package / name).write_text("PATIENCE = 4\n")
    assert digest_sources(package) == before


def test_it_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = own_sources()
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    assert own_sources() == before
