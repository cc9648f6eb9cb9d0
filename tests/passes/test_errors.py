import pytest

from sepwise.passes.errors import CheckFailed, InputError, SepwiseError, UnsupportedError


@pytest.mark.parametrize(("error", "status"), [(CheckFailed, 1), (InputError, 2), (UnsupportedError, 2), (SepwiseError, 3)])
def test_exit_status(error: type[SepwiseError], status: int) -> None:
    assert issubclass(error, SepwiseError)
    assert error("message").exit_status == status
