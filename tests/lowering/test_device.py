"""Devices: facts from the file, detection of this machine and of others from what they report."""

import dataclasses
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sepwise.lowering import device as devices
from sepwise.passes.errors import InputError

ZEN5_FLAGS = (
    "sse4_1 sse4_2 ssse3 pni popcnt cx16 lahf_lm avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f avx512bw avx512cd avx512dq "
    "avx512vl avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16 gfni vaes vpclmulqdq "
    "avx_vnni"
)
HASWELL_FLAGS = "sse4_1 sse4_2 ssse3 pni popcnt cx16 lahf_lm avx avx2 bmi1 bmi2 f16c fma abm movbe"


def x86(vendor: str, family: int, model: int, flags: str) -> list[dict[str, str]]:
    cpu = {"vendor_id": vendor, "cpu family": str(family), "model": str(model), "flags": flags}
    return [cpu, dict(cpu)]


def arm(*parts: int, features: str) -> list[dict[str, str]]:
    return [{"CPU implementer": "0x41", "CPU part": hex(part), "Features": features} for part in parts]


def describe(machine: str, cpus: list[dict[str, str]], folder: Path) -> devices.Device:
    return devices.describe_machine(machine=machine, cpus=cpus, cpu_folder=folder, allowed=frozenset({0, 1}))


FACTS_FILE = Path(devices.__file__).with_name("devices.toml")
ARM64 = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-v1", "neoverse-v2", "a64fx")


@pytest.mark.parametrize("name", devices.names()[1:])
def test_every_fact_of_a_device_has_a_source(name: str) -> None:
    device = devices.get(name)
    facts = {field.name for field in dataclasses.fields(device)} - {"name", "isa", "sources", "lane_bytes"}
    if not device.scalable_bytes:
        facts -= {"scalable_bytes", "scalable_ports"}
    if not device.ram_bytes:
        facts -= {"flash_bytes", "ram_bytes"}
    if device.unicorn_cpu is None:
        facts -= {"unicorn_cpu"}
    assert {fact for fact, source in device.sources if source} == facts


def test_registers_hold_twice_as_many_lanes_of_float16() -> None:
    device = devices.get("cortex-a76")
    half = device.holding("float16")
    assert (half.lanes, half.vector_bytes) == (2 * device.lanes, device.vector_bytes)
    assert device.holding("float32") is device
    assert half.holding("float32") == device


@pytest.mark.parametrize(
    ("name", "lanes", "registers"),
    [("x86-64-v2", 4, 16), ("x86-64-v3", 8, 16), ("x86-64-v4", 16, 32), *((name, 4, 32) for name in ARM64), ("cortex-a7", 4, 16), ("cortex-m7", 1, 32)],
)
def test_register_files(name: str, lanes: int, registers: int) -> None:
    device = devices.get(name)
    assert (device.lanes, device.vector_registers) == (lanes, registers)


def test_which_devices_flush_subnormals() -> None:
    assert {name for name in devices.names() if devices.get(name).flushes_subnormals} == {"cortex-a7", "rpi2"}


def test_which_devices_multiply_by_lane() -> None:
    others = ("cortex-a7", "rpi2", "cortex-m7", "stm32f746", "x86-64-v2", "x86-64-v3", "x86-64-v4")
    assert all(devices.get(name).multiplies_by_lane for name in ARM64)
    assert not any(devices.get(name).multiplies_by_lane for name in others)


def test_which_devices_have_scalable_vectors() -> None:
    found = {name: devices.get(name).scalable_bytes for name in devices.names()[1:]}
    lengths = {"neoverse-v1": 32, "graviton3": 32, "neoverse-v2": 16, "graviton4": 16, "a64fx": 64}
    assert {name: nbytes for name, nbytes in found.items() if nbytes} == lengths
    assert all("sve" in devices.get(name).flags for name, nbytes in found.items() if nbytes)


def test_which_devices_fuse_multiply_and_add() -> None:
    assert {name for name in devices.names() if not devices.get(name).fuses_multiply_add} - {"host"} == {"x86-64-v2"}


@pytest.mark.parametrize(
    ("board", "core", "differs"),
    [
        ("stm32f746", "cortex-m7", {"flash_bytes", "ram_bytes"}),
        ("rpi2", "cortex-a7", set()),
        ("rpi3", "cortex-a53", set()),
        ("rpi3b-plus", "cortex-a53", {"clock_hz", "memory_bytes_per_cycle"}),
        ("rpi4", "cortex-a72", set()),
        ("rpi5", "cortex-a76", set()),
        ("graviton2", "neoverse-n1", set()),
        ("graviton3", "neoverse-v1", set()),
        ("graviton4", "neoverse-v2", set()),
    ],
)
def test_a_board_has_the_facts_of_its_core(board: str, core: str, differs: set[str]) -> None:
    one, other = (dataclasses.asdict(devices.get(name)) for name in (board, core))
    assert {fact for fact in one if one[fact] != other[fact]} - {"name", "sources"} == differs
    assert {fact for fact, source in one["sources"] if source != dict(other["sources"])[fact]} == differs


def test_how_a_device_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.reach(devices.get("host")) == devices.Reach("native")
    strange = dataclasses.replace(devices.get("x86-64-v4"), flags=frozenset({"no such flag"}), triple=devices.get("host").triple)
    assert devices.reach(strange) == devices.Reach("native", ("no such flag",))
    riscv = {"triple": "riscv64-unknown-linux-gnu", "emulator": "qemu-riscv64"}
    foreign = dataclasses.replace(devices.get("cortex-a72"), **riscv, unicorn_cpu=None)
    monkeypatch.setenv("PATH", "")
    assert devices.reach(foreign) == devices.Reach("emulated", ("qemu-riscv64",), "apt-get install qemu-user")
    assert devices.reach(dataclasses.replace(foreign, emulator=None)) == devices.Reach("native", ("riscv64",))
    bare = devices.get("cortex-m7")
    assert devices.reach(bare) == devices.Reach("emulated")
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert devices.reach(bare) == devices.Reach("emulated", ("unicorn",), "pip install unicorn")
    monkeypatch.undo()
    monkeypatch.setattr(devices.shutil, "which", lambda program: f"/usr/bin/{program}")
    assert devices.reach(foreign) == devices.Reach("emulated")


def test_unicorn_stands_in_for_a_missing_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "missing_flags", lambda device: ["aarch64"])
    a55, v1, m7 = map(devices.get, ("cortex-a55", "neoverse-v1", "cortex-m7"))
    monkeypatch.setattr(devices.shutil, "which", lambda program: f"/usr/bin/{program}")
    assert all(devices.emulated_here(device) is device for device in (a55, v1, m7))
    monkeypatch.setattr(devices.shutil, "which", lambda program: None)
    assert devices.emulated_here(a55) == dataclasses.replace(a55, emulator="unicorn", emulator_cpu="max")
    assert devices.reach(a55) == devices.Reach("emulated")
    assert devices.emulated_here(m7) is m7
    assert devices.emulated_here(v1) is v1
    missing = devices.Reach("emulated", ("qemu-aarch64",), "apt-get install qemu-user")
    assert devices.reach(v1) == missing
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert devices.reach(a55) == missing


def test_scalable_vectors_alone_are_beyond_unicorn() -> None:
    arm = [device for device in map(devices.get, devices.names()[1:]) if device.isa == "arm"]
    assert {device.name for device in arm if device.unicorn_cpu is None and device.emulator != devices.UNICORN} == {
        device.name for device in arm if device.scalable_bytes
    }


def test_an_unknown_target_names_the_closest() -> None:
    with pytest.raises(InputError, match=r"Target 'cortx-a72': unknown.*Did you mean 'cortex-a72'\?"):
        devices.get("cortx-a72")


def test_host_is_this_machine() -> None:
    host = devices.get("host")
    assert devices.names()[0] == host.name == "host"
    assert devices.missing_flags(host) == []
    assert host.triple.startswith(platform.machine())
    assert not host.emulated
    assert host.cores >= 1
    assert host.l1d_bytes >= 1 << 12


def test_zen5_is_recognised(tmp_path: Path) -> None:
    host = describe("x86_64", x86("AuthenticAMD", 26, 2, ZEN5_FLAGS), tmp_path)
    assert (host.cpu, host.lanes, host.vector_registers, host.fma_ports) == ("znver5", 16, 32, 2)


CORE_FACTS = ("fma_ports", "load_ports", "issue_width", "fma_latency_cycles", "l2_bytes_per_cycle", "memory_bytes_per_cycle")


def core_facts(device: devices.Device) -> list[float]:
    return [getattr(device, fact) for fact in CORE_FACTS]


def test_the_facts_of_a_core_come_from_what_was_recognised(tmp_path: Path) -> None:
    zen4 = describe("x86_64", x86("AuthenticAMD", 25, 97, ZEN5_FLAGS), tmp_path)
    assert (zen4.cpu, zen4.fma_ports, zen4.load_ports, zen4.issue_width) == ("znver4", 1, 1, 6)
    assert dict(zen4.sources)["load_ports"] == "detected: znver4"
    a53 = describe("aarch64", arm(0xD03, features="fp asimd crc32"), tmp_path)
    assert (a53.cpu, a53.load_ports, a53.issue_width, a53.fma_latency_cycles) == ("cortex-a53", 0.5, 2, 4)


@pytest.mark.parametrize(
    ("machine", "cpus", "base"),
    [
        ("x86_64", x86("GenuineIntel", 6, 250, ZEN5_FLAGS), "x86-64-v4"),
        ("x86_64", x86("GenuineIntel", 6, 250, HASWELL_FLAGS), "x86-64-v3"),
        ("x86_64", x86("GenuineIntel", 6, 26, "pni"), "x86-64-v2"),
        ("aarch64", arm(0xD03, 0xD08, features="fp asimd crc32"), "cortex-a72"),
    ],
)
def test_an_unknown_core_has_the_facts_of_its_level(
    machine: str, cpus: list[dict[str, str]], base: str, tmp_path: Path
) -> None:
    host = describe(machine, cpus, tmp_path)
    assert core_facts(host) == core_facts(devices.get(base))
    assert dict(host.sources)["issue_width"] == f"core not recognised, taken from {base}"


@pytest.mark.parametrize("kind", ["x86_core", "arm_core"])
def test_every_recognisable_core_has_its_facts(kind: str) -> None:
    document = tomllib.loads(FACTS_FILE.read_text())
    assert document[kind]
    for core in document[kind]:
        if "device" in core:
            assert set(core) == {"device", "implementer", "part"}
            facts = {fact: getattr(devices.get(core["device"]), fact) for fact in CORE_FACTS}
        else:
            facts = {fact: core[fact] for fact in CORE_FACTS}
        assert all(value > 0 for value in facts.values()), core
        assert facts["l2_bytes_per_cycle"] >= facts["memory_bytes_per_cycle"], core


def test_hidden_flags_fall_back_to_the_level_that_is_left(tmp_path: Path) -> None:
    flags = ZEN5_FLAGS.replace(" gfni", "")
    assert describe("x86_64", x86("AuthenticAMD", 26, 2, flags), tmp_path).cpu == "x86-64-v4"
    host = describe("x86_64", x86("AuthenticAMD", 26, 2, HASWELL_FLAGS), tmp_path)
    assert (host.cpu, host.lanes, host.vector_registers) == ("x86-64-v3", 8, 16)
    assert host.flags == devices.get("x86-64-v3").flags


@pytest.mark.parametrize(
    ("family", "model", "flags", "cpu"),
    [
        (6, 63, HASWELL_FLAGS, "haswell"),
        (6, 85, HASWELL_FLAGS + " avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni", "cascadelake"),
        (6, 167, ZEN5_FLAGS.replace(" avx512_bf16", "").replace(" avx_vnni", ""), "icelake-client"),
        (6, 167, ZEN5_FLAGS + " avx512_fp16", "sapphirerapids"),
        (6, 173, ZEN5_FLAGS + " avx512_fp16", "graniterapids"),
        (6, 151, HASWELL_FLAGS + " gfni vaes vpclmulqdq avx_vnni", "alderlake"),
        (6, 143, ZEN5_FLAGS + " avx512_fp16", "sapphirerapids"),
        (6, 250, ZEN5_FLAGS, "x86-64-v4"),
    ],
)
def test_intel_cores(family: int, model: int, flags: str, cpu: str, tmp_path: Path) -> None:
    assert describe("x86_64", x86("GenuineIntel", family, model, flags), tmp_path).cpu == cpu


def test_a_machine_without_avx_gets_four_lanes(tmp_path: Path) -> None:
    host = describe("x86_64", x86("GenuineIntel", 6, 26, "pni"), tmp_path)
    assert (host.cpu, host.lanes, host.flags) == ("x86-64", 4, frozenset())


def test_arm_hosts(tmp_path: Path) -> None:
    n1 = describe("aarch64", arm(0xD0C, 0xD0C, features="fp asimd crc32 asimdhp asimddp atomics"), tmp_path)
    assert (n1.cpu, n1.lanes, n1.isa, n1.triple) == ("neoverse-n1", 4, "arm", "aarch64-unknown-linux-gnu")
    mixed = describe("aarch64", arm(0xD03, 0xD08, features="fp asimd crc32 asimddp"), tmp_path)
    assert (mixed.cpu, mixed.features) == ("generic", ("+dotprod",))


def test_an_arm_host_is_the_device_of_its_core(tmp_path: Path) -> None:
    v1 = devices.get("neoverse-v1")
    host = describe("aarch64", arm(0xD40, 0xD40, features=" ".join(v1.flags)), tmp_path)
    assert (host.cpu, host.flags, host.features) == (v1.cpu, v1.flags, ())
    assert core_facts(host) == core_facts(v1)
    assert (host.scalable_bytes, host.scalable_ports) == (v1.scalable_bytes, v1.scalable_ports) == (32, 2)
    hidden = describe("aarch64", arm(0xD40, 0xD40, features=" ".join(v1.flags - {"sve"})), tmp_path)
    assert (hidden.cpu, hidden.scalable_bytes) == ("generic", 0)


def test_an_unknown_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this machine is riscv64"):
        describe("riscv64", [], tmp_path)


def test_caches_and_cores_come_from_sysfs(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M")]):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "type").write_text(f"{kind}\n")
        (folder / "size").write_text(f"{size}\n")
    for cpu in (0, 1):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-1\n")
    host = describe("x86_64", x86("AuthenticAMD", 26, 2, ZEN5_FLAGS), tmp_path)
    assert (host.l1d_bytes, host.l2_bytes, host.l3_bytes, host.cores) == (48 << 10, 2 << 20, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lanes = {", 'colour = { value = "red", source = "none" }\nlanes = {'), "device 'cortex-a72': unknown fact 'colour'"),
        (("lanes =", "# lanes ="), "device 'cortex-a72': fact 'lanes' is missing"),
        (('source = "Armv8-A: v0 to v31"', 'source = ""'), "fact 'vector_registers' is .*needed is { value, source }"),
        (("[device.cortex-a72]", "[gadget]\nx = 1\n\n[device.cortex-a72]"), "unknown table 'gadget'"),
        (('like = "cortex-a72"', 'like = "cortex-a27"'), "device 'rpi4' is like 'cortex-a27'; needed is a device with facts"),
        (('like = "cortex-a76"', 'like = "rpi4"'), "device 'rpi5' is like 'rpi4'; needed is a device with facts"),
    ],
)
def test_a_wrong_facts_file_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    text = FACTS_FILE.read_text()
    head, tail = text.split("[device.cortex-a72]")
    text = head + ("[device.cortex-a72]" + tail).replace(*change, 1)
    path = tmp_path / "facts.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        devices.load(path)


def test_the_compiler_knows_every_cpu() -> None:
    codegen = pytest.importorskip("tvm.target.codegen")
    target = pytest.importorskip("tvm.target")
    for name in devices.names():
        device = devices.get(name)
        known = codegen.llvm_get_cpu_archlist(target.Target({"kind": "llvm", "mtriple": device.triple}))
        assert device.cpu in {str(cpu) for cpu in known}


def test_the_file_is_read_without_tvm() -> None:
    code = "import sys; from sepwise.lowering import device; device.get('host'); assert 'tvm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("cpus", "name"),
    [([{"processor": "0", "model name": "A cpu"}] * 2, "A cpu"), ([{"processor": "0", "CPU part": "0xd08"}], None), ([], None)],
)
def test_a_processor_is_called_what_it_calls_itself(
    monkeypatch: pytest.MonkeyPatch, cpus: list[dict[str, str]], name: str | None
) -> None:
    monkeypatch.setattr(devices, "_read_cpuinfo", lambda _: cpus)
    assert devices.host_processor.__wrapped__() == name
