import pytest

from sepwise.passes.vocabulary import ACTIVATION_PARAMETERS, Activation


@pytest.mark.parametrize("kind", ACTIVATION_PARAMETERS)
def test_every_kind_takes_its_parameters(kind: str) -> None:
    parameters = tuple(float(index) for index in range(len(ACTIVATION_PARAMETERS[kind])))
    assert Activation(kind, parameters) == Activation(kind, parameters)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'swoosh' is unknown; it must be one of relu, clip"):
        Activation("swoosh")


def test_wrong_number_of_parameters() -> None:
    with pytest.raises(ValueError, match=r"'clip' has 1 parameters; it needs 2: \(lo, hi\)"):
        Activation("clip", (0.0,))
