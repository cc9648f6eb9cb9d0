"""The reports as files: where and when they are written, and where not."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from sepwise.cli import main
from sepwise.passes.equivalence import Verification
from sepwise.passes.errors import InputError
from sepwise.report import require_places, write_html, write_junit

NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) <float[8, 4, 1, 1] w>
{
   [pw] h = Conv(x, w)
   [act] y = Relu(h)
}
"""


def saved(path: Path, scale: float = 1.0) -> Path:
    model = parser.parse_model(NETWORK)
    weight = np.random.default_rng(0).standard_normal((8, 4, 1, 1)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(weight * np.float32(scale), "w"))
    onnx.save(model, path)
    return path


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


@pytest.mark.parametrize(("scale", "status"), [(1.0, 0), (1.01, 1)])
def test_both_reports_of_two_files(scale: float, status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", scale)
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    words = ("verify", first, "--against", second, "--html", html, "--junit", junit, "--json")
    assert run(*words) == status
    fields = json.loads(capfd.readouterr().out)
    page = html.read_text()
    assert f"sepwise verify {first} --against {second} --html {html} --junit {junit} --json" in page
    assert ("Not passed" in page) == (status == 1)
    root = ElementTree.parse(junit).getroot()
    assert (int(root.get("failures", "")) > 0) == (status == 1)
    assert {case.get("name") for case in root.iter("testcase")} == {check["name"] for check in fields["checks"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "r.html", "r.xml"]


def test_a_report_of_a_target(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    assert run("verify", saved(tmp_path / "a.onnx"), "--html", html, "--junit", junit) == 0
    capfd.readouterr()
    page = html.read_text()
    assert "fuse_activation" in page.replace("<wbr>", "")
    assert 'class="ratios"' in page
    assert "pointwise" in page
    assert [suite.get("name") for suite in ElementTree.parse(junit).getroot()] == ["graph", "kernel", "model"]


@pytest.mark.parametrize("option", ["--html", "--junit"])
@pytest.mark.parametrize("place", ["missing/r", "file/r", "."])
def test_a_place_that_takes_no_report_is_refused_before_the_work(
    option: str, place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepwise.api.verify", lambda *_, **__: pytest.fail("the work began"))
    model = saved(tmp_path / "a.onnx")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert run("verify", model, "--against", model, option, tmp_path / place) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert str(tmp_path / place) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_two_reports_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="two reports cannot share one file"):
        require_places(tmp_path / "r", tmp_path / "folder" / ".." / "r")
    require_places(tmp_path / "r", None)
    require_places(None, None)


@pytest.mark.parametrize("option", ["--html", "--junit"])
def test_full_disk(option: str, tmp_path: Path) -> None:
    """Files of over 512 bytes do not fit."""
    model = saved(tmp_path / "a.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "sepwise", "verify", str(model), "--against", str(model), option, str(tmp_path / "r")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert f"{tmp_path / 'r'}: cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_report_takes_the_place_of_the_one_before(passing: Verification, failing: Verification, tmp_path: Path) -> None:
    for write in (lambda verdict: write_html(verdict, tmp_path / "r", command="c"), lambda verdict: write_junit(verdict, tmp_path / "r")):
        write(failing)
        before = (tmp_path / "r").read_bytes()
        write(passing)
        assert (tmp_path / "r").read_bytes() != before
        assert [path.name for path in tmp_path.iterdir()] == ["r"]
