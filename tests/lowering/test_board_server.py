"""The folder for a board: whose it can be, what is in it, and what its program refuses."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sepwise.lowering import device
from sepwise.lowering.board_server import SERVER, build_server
from sepwise.passes.errors import InputError


def test_no_server_for_it() -> None:
    for name in ("cortex-a7", "cortex-m7"):
        with pytest.raises(InputError, match=f"Target '{name}': boards are reached whose Linux is aarch64 or x86_64"):
            build_server(device.get(name), Path("never"))


def test_a_public_address_takes_two_words(tmp_path: Path) -> None:
    build_server(device.get("host"), tmp_path / "server")
    build_server(device.get("host"), tmp_path / "server")  # replaces its own
    command = [str(tmp_path / "server" / SERVER), "--port", "0", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "0.0.0.0: others can reach this address" in refused.stderr
    assert "add --public" in refused.stderr
    with subprocess.Popen([*command, "--public"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on 0.0.0.0 port ")
        process.kill()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="exists and is no server"):
        build_server(device.get("host"), tmp_path / "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prot", "1"], "--prot: unknown option"),
        (["--port"], "--port: needs a value"),
        (["--host", "nowhere.invalid"], "nowhere.invalid: no such address or port"),
        (["--tracker", "desk"], "desk: needed are HOST:PORT, and --key"),
    ],
)
def test_wrong_options_of_the_server(board_server: Callable[..., object], options: list[str], message: str) -> None:
    with board_server() as server:
        done = subprocess.run([*server.process.args[:1], *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
