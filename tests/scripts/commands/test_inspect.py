import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_inspect(command: Callable[..., Any], network: Path) -> None:
    """A 3x3 layer from 3 to 4 channels: 27 + 12 parameters separable, 108 standard."""
    status, out, _ = command("inspect", network, "--shape", "1,3,6,6", "--json")
    assert status == 0
    found = json.loads(out)
    assert [(layer["name"], layer["kind"], layer["parameters"]) for layer in found["layers"]] == [
        ("dw", "depthwise", 27),
        ("pw", "pointwise", 12),
    ]
    (pair,) = found["separable"]
    assert (pair["layers"], pair["parameters"], pair["standard_parameters"]) == (["dw", "pw"], 39, 108)
    assert (found["parameters"], found["macs"]) == (39, 36 * 39)


def test_the_tables(command: Callable[..., Any], network: Path) -> None:
    status, out, _ = command("inspect", network, "--shape", "1,3,6,6")
    assert status == 0
    lines = out.splitlines()
    assert any("dw" in line and "depthwise" in line and "1x3x6x6" in line and "27" in line for line in lines)
    assert any("dw" in line and "pw" in line and "39" in line and "108" in line for line in lines)
    assert any(line.startswith("MACs") and "1,404" in line for line in lines)


def test_a_forecast(command: Callable[..., Any], network: Path) -> None:
    status, out, _ = command("inspect", network, "--shape", "1,3,6,6", "--target", "cortex-m7", "--json")
    assert status == 0
    forecast = json.loads(out)["forecast"]
    assert forecast["target"] == "cortex-m7"
    assert forecast["tensor_bytes"] == 4 * 36 * (3 + 4)
    assert forecast["ram_bytes"] == forecast["arena_bytes"] + forecast["tensor_bytes"]
    assert forecast["flash_bytes"] == forecast["weight_bytes"] + forecast["code_estimate_bytes"]
    assert (forecast["device_flash_bytes"], forecast["lacks"]) == (512 << 10, [])


def test_the_table_of_a_forecast(command: Callable[..., Any], network: Path) -> None:
    status, out, _ = command("inspect", network, "--shape", "1,3,6,6", "--target", "cortex-m7")
    assert status == 0
    lines = out.splitlines()
    assert any("RAM" in line and "131,072" in line for line in lines)
    assert any("code, an estimate" in line for line in lines)
    assert command("inspect", network, "--shape", "1,3,6,6", "--target", "cortex-m9").status == 2
