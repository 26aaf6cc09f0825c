"""An evaluation that the tests of the report share."""

import pytest


@pytest.fixture(scope="session")
def reported(shapes_dir):
    from reported import reported

    from retina_jax.data.data_set import open_split

    return reported(open_split(shapes_dir / "shapes" / "1.0.0", "validation"))
