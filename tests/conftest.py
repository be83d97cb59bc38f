"""Every function of the package is called with its annotations checked, shapes of tensors among them."""

from hypothesis import settings
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  (the hook finds it by name)

# Before any test imports the package. `Float[Tensor, "B C H W"]` binds B for the length of one call.
install_import_hook("dit_heads", "tests.shapes.checked")

# These machines are noisy: how long an example takes is no sign of anything.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
