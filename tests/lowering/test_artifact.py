"""Artifacts: saved whole or not at all, loaded only where sound and for this cpu."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sepwise.lowering import artifact, device
from sepwise.lowering.artifact import Artifact, load
from sepwise.lowering.program import Program
from sepwise.passes.errors import InputError

Tensors = dict[str, np.ndarray]
FILES = ["constants.bin", "kernels.o", "model.so", "program.json"]


@pytest.fixture(scope="module")
def saved(c_program: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "small"
    with Artifact(c_program(), report={"model": "small", "strategy_mac_share": 1.0}, threads=2) as made:
        made.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "small"))


def edit(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Changes program.json and gives it the right checksum."""
    document = json.loads((folder / "program.json").read_text())
    change(document)
    body = {key: value for key, value in document.items() if key not in ("format", "sha256")}
    document["sha256"] = artifact._hash_json(body)
    (folder / "program.json").write_text(json.dumps(document))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_has_its_files_and_no_others(saved: Path) -> None:
    assert leftovers(saved) == FILES
    assert leftovers(saved.parent) == ["small"]


def test_a_saved_program_comes_back(saved: Path, c_program: Callable[..., Program]) -> None:
    loaded, original = load(saved), c_program()
    for field in dataclasses.fields(Program):
        if field.name not in ("constants", "object_code"):
            assert getattr(loaded.program, field.name) == getattr(original, field.name)
    np.testing.assert_array_equal(loaded.program.constants, original.constants)
    assert loaded.program.object_code.startswith(b"\x7fELF")
    assert loaded.report == {"model": "small", "strategy_mac_share": 1.0}
    assert loaded.threads == 2


def test_a_loaded_artifact_runs(saved: Path, c_program_tensors: Tensors) -> None:
    with load(saved) as loaded:
        for _ in range(2):
            outputs = loaded.run(x=c_program_tensors["x"], shift=c_program_tensors["shift"])
            np.testing.assert_array_equal(outputs["s"], c_program_tensors["s"])
            loaded.close()


def test_a_profile_has_every_kernel(saved: Path) -> None:
    with load(saved) as loaded:
        profiles = loaded.profile(repeats=3)
    assert [(profile.name, profile.nodes, profile.instructions) for profile in profiles] == [
        ("first", ("Relu_0",), None),
        ("second", ("Add_1", "Sum_2"), None),
    ]


@pytest.mark.emulated
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is missing: apt-get install qemu-user")
def test_an_emulated_artifact_runs_and_counts(
    c_program: Callable[..., Program], c_program_tensors: Tensors, tmp_path: Path
) -> None:
    if not device.get("cortex-a72").emulated:
        pytest.skip("this machine runs the target itself; nothing installs another one")
    Artifact(c_program("cortex-a72")).save(tmp_path / "a72")
    assert "model" in leftovers(tmp_path / "a72")
    with load(tmp_path / "a72") as loaded:
        outputs = loaded.run(x=c_program_tensors["x"], shift=c_program_tensors["shift"])
        np.testing.assert_array_equal(outputs["z"], c_program_tensors["z"])
        assert all(profile.instructions and profile.median_us is None for profile in loaded.profile())


def test_saving_again_replaces_what_runs(c_program: Callable[..., Program], c_program_tensors: Tensors, tmp_path: Path) -> None:
    given = {name: c_program_tensors[name] for name in ("x", "shift")}
    Artifact(c_program()).save(tmp_path / "small")
    with load(tmp_path / "small") as first:
        first.run(**given)
        doubled = dataclasses.replace(c_program(), calls=(c_program().calls[0], c_program().calls[0]))
        Artifact(doubled).save(tmp_path / "small")
        with load(tmp_path / "small") as second:
            assert (second.run(**given)["z"] != c_program_tensors["z"]).any()
        np.testing.assert_array_equal(first.run(**given)["z"], c_program_tensors["z"])
    assert leftovers(tmp_path) == ["small"]


def test_an_empty_folder_is_taken(c_program: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    Artifact(c_program()).save(tmp_path / "small")
    assert leftovers(tmp_path / "small") == FILES


def test_a_place_by_way_of_itself(c_program: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact(c_program())
    for _ in range(2):
        artifact.save(tmp_path / "small" / ".." / "small" if (tmp_path / "small").exists() else tmp_path / "small")
    assert leftovers(tmp_path) == ["small"]
    assert leftovers(tmp_path / "small") == FILES
    monkeypatch.chdir(tmp_path / "small")
    for place in (".", "../small", ".."):
        with pytest.raises(InputError, match=r"current folder|is no artifact"):
            artifact.save(place)
    assert leftovers(tmp_path) == ["small"]
    assert leftovers(tmp_path / "small") == FILES


def test_what_could_not_be_replaced_stays(c_program: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact(c_program())
    artifact.save(tmp_path / "small")
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name.startswith(".small-") and not path.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="small: cannot be written: Input/output error"):
        artifact.save(tmp_path / "small")
    assert leftovers(tmp_path) == ["small"]
    assert leftovers(tmp_path / "small") == FILES


def test_what_is_no_artifact_is_not_replaced(c_program: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes: exists and is no artifact \(it holds no program.json\); choose another place"):
        Artifact(c_program()).save(tmp_path / "notes")
    assert leftovers(tmp_path / "notes") == ["diary.txt"]


def test_a_missing_parent_is_named(c_program: Callable[..., Program], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        Artifact(c_program()).save(tmp_path / "nowhere" / "small")


def test_a_full_disk_leaves_nothing_behind(
    c_program: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Artifact(c_program())
    made.save(tmp_path / "small")
    before = (tmp_path / "small" / "program.json").read_bytes()

    def fail(path: Path, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(InputError, match=r"no (space|room) left|linking needs room"):
        made.save(tmp_path / "small")
    assert leftovers(tmp_path) == ["small"]
    assert (tmp_path / "small" / "program.json").read_bytes() == before


def test_other_folders_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no program\.json, so it is no artifact"):
        load(tmp_path)
    with pytest.raises(InputError, match="does not exist, so it is no artifact"):
        load(tmp_path / "nowhere")
    (tmp_path / "m.onnx").write_text("")
    with pytest.raises(InputError, match="is no folder, so it is no artifact"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(name: str, copy: Path) -> None:
    contents = bytearray((copy / name).read_bytes())
    at = contents.index(b'"tasks": 2') + 9 if name == "program.json" else len(contents) // 2
    contents[at] ^= 1
    (copy / name).write_bytes(contents)
    with pytest.raises(InputError, match=rf"{name}: damaged.*its checksum differs.*compile the model again"):
        load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(name: str, copy: Path) -> None:
    contents = (copy / name).read_bytes()
    (copy / name).write_bytes(contents[: len(contents) // 2])
    with pytest.raises(InputError, match=f"{name}: damaged"):
        load(copy)


@pytest.mark.parametrize("name", FILES[:3])
def test_a_missing_file_is_found(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name}: cannot be read: No such file"):
        load(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 3}', '{"format": 3, "sha256": "0"}'])
def test_other_json_is_damage(text: str, copy: Path) -> None:
    (copy / "program.json").write_text(text)
    with pytest.raises(InputError, match=r"program\.json: damaged"):
        load(copy)


def test_another_format_is_named(copy: Path) -> None:
    (copy / "program.json").write_text('{"format": 7}')
    with pytest.raises(InputError, match="an artifact of format 7, this sepwise reads format 3"):
        load(copy)


def test_calls_without_workloads_are_read(copy: Path, c_program_tensors: Tensors) -> None:
    """Artifacts from before they were noted."""

    def change(document: dict[str, object]) -> None:
        body = document["program"]
        assert isinstance(body, dict)
        for call in body["calls"]:
            del call["workload"], call["tile"]

    edit(copy, change)
    with load(copy) as loaded:
        assert {call.workload for call in loaded.program.calls} == {""}
        np.testing.assert_array_equal(loaded.run(x=c_program_tensors["x"], shift=c_program_tensors["shift"])["s"], c_program_tensors["s"])


def test_code_for_another_cpu_is_refused(copy: Path) -> None:
    def change(document: dict[str, object]) -> None:
        facts = document["device"]
        assert isinstance(facts, dict)
        facts["cpu"] = "futurelake"
        facts["flags"] = [*facts["flags"], "avx1024f"]

    edit(copy, change)
    with pytest.raises(InputError, match=r"built for host \(futurelake\); this machine lacks avx1024f"):
        load(copy)
