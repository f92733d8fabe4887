"""Which Flower both ends of a federation have: one of another minor version only warns."""

from importlib.metadata import version

from fedhp.errors import DeploymentError

TRIED = ("1.41", "1.42")  # which understand each other; pyproject.toml has pip install no other


def check_flower() -> None:
    """Refuses to go on with a Flower that this fedhp was not tried with.

    Raises:
        DeploymentError: If another minor version is installed here.
    """
    own = version("flwr")
    minor = ".".join(own.split(".")[:2])
    if minor not in TRIED:
        raise DeploymentError(
            f"Flower {own} is installed here, and fedhp {version('fedhp')} takes {' and '.join(TRIED)}; "
            f"install it again: pip install 'flwr=={TRIED[-1]}.*'"
        )
