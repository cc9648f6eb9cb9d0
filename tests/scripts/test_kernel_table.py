"""The profile's tables: the user's names, shares and the roof, within 100 columns."""

from dataclasses import replace

import pytest

from sepwise.kernel_table import print_kernels, spell_nodes
from sepwise.lowering.bench import Benchmark, KernelCount, KernelTime, RuntimeCount, RuntimeTime
from sepwise.lowering.roofline import Level, Roof

ROOF = Roof("measured", "us", 100e3, (Level("L1", 1 << 15, 400e3), Level("memory", None, 10e3)))
TIMED = Benchmark(
    "net", "host", "native", 1, 4_000_000, 1.0, (RuntimeTime("sepwise", "1.0", 110.0, 100.0, 130.0, 50),), {},
    (
        KernelTime("k0", ("/block/block.0/Conv", "/block/block.0/Clip"), "dense", 80.0, 4_000_000, 0.5, 1000, 40.0, "compute", 0.5),
        KernelTime("g0", ("pool",), "generic", 20.0, 0, 0.0, 100, 5.0, "memory", 0.25),
    ),
    roof=ROOF, whole_us=104.0, kernels_us=101.0,
)  # fmt: skip
COUNTED = Benchmark(
    "net", "cortex-a72", "emulated", 1, 1000, 1.0,
    (RuntimeCount("sepwise", "1.0", 460, 0.46, 100, 50, 3, 1, {"cortex-a72": 500.0}),), {},
    (KernelCount("k0", ("a", "b"), "dense", 450, 100, 50, 400, 200, 3, 1, {"cortex-a72": 500.0}, 1000, 64, 250.0, "compute", 0.5),),
    roof=Roof("facts", "cycles", 4, (Level("memory", None, 3),)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        (("conv",), "conv"),
        (("a.0.conv", "a.0.norm", "a.1.conv", "b"), "a.0.{conv, norm}, a.1.conv, b"),
        (("/f/f.0/Conv", "/f/f.0/Clip"), "/f/f.0/{Conv, Clip}"),
        (("node_conv", "node_relu"), "{node_conv, node_relu}"),
        ((), ""),
    ],
)
def test_names_that_share_a_path(nodes: tuple[str, ...], text: str) -> None:
    assert spell_nodes(nodes) == text


def test_of_many_names_the_first_are_shown() -> None:
    nodes = [f"layer{index}.with.a.long.path.of.its.own.conv" for index in range(20)]
    text = spell_nodes(nodes)
    assert text.startswith(", ".join(nodes[:3]))
    assert text.endswith(" and 17 more")


def rows(out: str) -> dict[str, list[str]]:
    """Cells by the first one, of lines with several."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return {first: others for first, *others in cells}


def test_times(capsys: pytest.CaptureFixture[str]) -> None:
    print_kernels(TIMED.to_json())
    out = capsys.readouterr().out
    found = rows(out)
    assert found["/block/block.0/{Conv, Clip}"] == ["80", "80", "50", "50", "compute"]
    assert found["pool"] == ["20", "20", "-", "25", "memory"]
    assert found["all kernels"] == ["100", "100", "40", "45", ""]
    assert out.splitlines()[-2:] == [
        "kernels of a run add up to 101 us, and a whole run takes 104 us",
        "roof, measured beside the kernels: 100 GMAC/s; L1 400, memory 10 GB/s",
    ]


def test_counts_are_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    print_kernels(COUNTED.to_json())
    out = capsys.readouterr().out
    assert " us" not in out
    assert rows(out)["{a, b}"] == ["450", "100", "0.45", "500", "50", "compute"]
    assert rows(out)["all kernels"] == ["450", "100", "0.46", "500", "50", ""]
    assert out.splitlines()[-2:] == [
        "kernels take 98 % of a whole run's 460 instructions",
        "roof, by the target's facts: 4 MACs a cycle; memory 3 bytes a cycle",
    ]


def test_what_is_not_known_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = replace(TIMED.kernels[0], roofline=None, attainable_us=None, bound=None, attained=None)
    print_kernels(replace(TIMED, method="remote", kernels=(kernel,), roof=None).to_json())
    out = capsys.readouterr().out
    assert rows(out)["/block/block.0/{Conv, Clip}"][-2:] == ["-", "-"]
    assert rows(out)["all kernels"][-2:] == ["-", ""]
    assert out.splitlines()[-1] == "no roof: the clock of the target is not known, and only this machine's own cores are measured"


@pytest.mark.parametrize("result", [TIMED, COUNTED])
def test_long_names_leave_the_table_100_columns_wide(capsys: pytest.CaptureFixture[str], result: Benchmark) -> None:
    nodes = tuple(f"/features/features.{index}/conv/conv.{index}/conv.{index}.0/Conv" for index in range(3))
    print_kernels(replace(result, kernels=tuple(replace(kernel, nodes=nodes) for kernel in result.kernels)).to_json())
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "│┃┏┡└"]
    assert {len(line) for line in lines} == {100}
