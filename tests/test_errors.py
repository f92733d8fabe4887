"""What says which extra an import lacks."""

import pytest

from fedhp.errors import MissingExtraError, require


@pytest.mark.parametrize(
    ("package", "named"), [(None, "no_such_module"), ("no-such-package", "no-such-package")]
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(package, named):
    said = rf"^a picture needs the package '{named}'.* pip install 'fedhp\[plots\]' .*-e '\.\[plots\]'"
    with pytest.raises(MissingExtraError, match=said), require("a picture", "plots", package):
        import no_such_module.part  # type: ignore[import-not-found]  # noqa: F401


def test_a_package_that_is_there_and_broken_says_so_itself():
    with pytest.raises(ImportError, match="libgomp") as error, require("a picture", "plots"):
        raise ImportError("libgomp.so.1: cannot open shared object file")
    assert not isinstance(error.value, MissingExtraError)
